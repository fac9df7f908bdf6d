
CREATE TABLE secrets (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version >= 1),
    -- 1: a handler is given the base64 of the value
    is_binary INTEGER NOT NULL CHECK (is_binary IN (0, 1)),
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    -- which key opens it, and the value as AES-256-GCM leaves it: nothing here is in clear
    key_id TEXT NOT NULL,
    nonce BLOB NOT NULL CHECK (length(nonce) = 12),
    sealed BLOB NOT NULL CHECK (length(sealed) >= 16),
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
