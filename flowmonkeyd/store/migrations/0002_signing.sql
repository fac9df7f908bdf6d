
-- who signed the package, and its handler.sig as it came; NULL: it is not signed
ALTER TABLE handlers ADD COLUMN publisher TEXT;
ALTER TABLE handlers ADD COLUMN key_id TEXT;
ALTER TABLE handlers ADD COLUMN signature TEXT;
-- what its publisher says against it
ALTER TABLE handlers ADD COLUMN deprecation TEXT;

CREATE TABLE publisher_keys (
    id TEXT PRIMARY KEY,
    -- ed25519:<base64>
    public TEXT NOT NULL,
    publisher TEXT NOT NULL,
    -- NULL: known from the configuration only, and revoked here
    trusted_at_ms INTEGER,
    revoked_at_ms INTEGER,
    reason TEXT,
    CHECK (trusted_at_ms IS NOT NULL OR revoked_at_ms IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- the first part of a handler's type, in lower case, and who may publish below it
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    publisher TEXT NOT NULL,
    bound_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
