-- One line for each attempt that is billed: the history's own key, so that nothing is billed twice.
CREATE TABLE charges (
    execution INTEGER NOT NULL REFERENCES executions (key),
    -- of the attempt in the execution's history
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    tier TEXT NOT NULL,
    nanos INTEGER NOT NULL CHECK (nanos >= 0),
    PRIMARY KEY (execution, seq)
) STRICT, WITHOUT ROWID;

CREATE INDEX charges_by_time ON charges (at_ms);

-- What a tenant with a quota has used of a UTC day or month; counted anew at every start.
CREATE TABLE quota_use (
    tenant TEXT NOT NULL,
    -- 2026-01-31 or 2026-01
    period TEXT NOT NULL,
    executions INTEGER NOT NULL,
    nanos INTEGER NOT NULL,
    PRIMARY KEY (tenant, period)
) STRICT, WITHOUT ROWID;
