-- The schema after all migrations. UPDATE_GOLDEN=1 pytest tests/test_tidy.py writes it.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE flows (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    version TEXT NOT NULL,
    name TEXT,
    digest TEXT NOT NULL,
    document TEXT NOT NULL,
    step_count INTEGER NOT NULL,
    applied_at_ms INTEGER NOT NULL,
    UNIQUE (id, version)
) STRICT;

CREATE TABLE executions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    flow INTEGER NOT NULL REFERENCES flows (key),
    -- {"handler ref": "version"} fixed when the execution was made; NULL: built-in types only
    pins TEXT,
    status TEXT NOT NULL CHECK (status IN (
        'pending', 'running', 'waiting', 'cancelling', 'cancelled', 'completed', 'failed')),
    step_id TEXT,
    step_count INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    priority INTEGER NOT NULL CHECK (priority IN (0, 1, 2)),
    -- small values; each large one is a row of context_values, its size here in spilled
    context TEXT NOT NULL,
    spilled TEXT,
    context_bytes INTEGER NOT NULL,
    error TEXT,
    cancellation TEXT,
    metadata TEXT,
    idempotency_key TEXT,
    parent INTEGER REFERENCES executions (key),
    child_index INTEGER,
    depth INTEGER NOT NULL,
    execution_ms INTEGER NOT NULL,
    wait_ms INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    started_at_ms INTEGER,
    finished_at_ms INTEGER,
    -- when it is cancelled for taking too long; NULL once it has ended
    deadline_ms INTEGER,
    CHECK ((finished_at_ms IS NULL) = (status NOT IN ('cancelled', 'completed', 'failed'))),
    CHECK ((deadline_ms IS NULL) = (finished_at_ms IS NOT NULL))
) STRICT;

CREATE INDEX executions_by_status ON executions (status);

CREATE INDEX executions_by_flow ON executions (flow);

CREATE INDEX executions_by_parent ON executions (parent) WHERE parent IS NOT NULL;

CREATE INDEX executions_by_deadline ON executions (deadline_ms) WHERE deadline_ms IS NOT NULL;

CREATE TABLE context_values (
    execution INTEGER NOT NULL REFERENCES executions (key),
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    UNIQUE (execution, name)
) STRICT;

CREATE TABLE history (
    execution INTEGER NOT NULL REFERENCES executions (key),
    seq INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    type TEXT NOT NULL,
    version TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('success', 'failure', 'wait', 'error')),
    output TEXT,
    error TEXT,
    started_at_ms INTEGER NOT NULL,
    completed_at_ms INTEGER NOT NULL,
    queued_ms INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    worker TEXT NOT NULL,
    usage TEXT,
    PRIMARY KEY (execution, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    token TEXT PRIMARY KEY,
    execution INTEGER NOT NULL REFERENCES executions (key),
    step_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'used', 'revoked')),
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tokens_active ON tokens (execution) WHERE state = 'active';

CREATE TABLE idempotency (
    tenant TEXT NOT NULL,
    flow_id TEXT NOT NULL,
    name TEXT NOT NULL,
    execution INTEGER NOT NULL REFERENCES executions (key),
    expires_at_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, flow_id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_expiry ON idempotency (expires_at_ms);

CREATE TABLE event_types (
    code INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    type INTEGER NOT NULL REFERENCES event_types (code),
    at_ms INTEGER NOT NULL,
    execution INTEGER REFERENCES executions (key),
    step_id TEXT,
    data TEXT
) STRICT;

CREATE INDEX events_by_execution ON events (execution, seq) WHERE execution IS NOT NULL;

CREATE TABLE logs (
    execution INTEGER NOT NULL REFERENCES executions (key),
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    stream TEXT NOT NULL,
    level TEXT,
    message TEXT NOT NULL,
    fields TEXT,
    PRIMARY KEY (execution, seq)
) STRICT, WITHOUT ROWID;

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

CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    publisher TEXT NOT NULL,
    bound_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

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

CREATE TABLE quota_use (
    tenant TEXT NOT NULL,
    -- 2026-01-31 or 2026-01
    period TEXT NOT NULL,
    executions INTEGER NOT NULL,
    nanos INTEGER NOT NULL,
    PRIMARY KEY (tenant, period)
) STRICT, WITHOUT ROWID;

CREATE TABLE handlers (
    key INTEGER PRIMARY KEY,
    type TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL,
    manifest TEXT NOT NULL,
    -- 1: its steps are jobs, as the manifest says
    stateful INTEGER NOT NULL CHECK (stateful IN (0, 1)),
    size_bytes INTEGER NOT NULL,
    published_at_ms INTEGER NOT NULL,
    yanked_at_ms INTEGER,
    -- who signed the package, and its handler.sig as it came; NULL: it is not signed
    publisher TEXT,
    key_id TEXT,
    signature TEXT,
    -- what its publisher says against it
    deprecation TEXT,
    UNIQUE (type, version)
) STRICT;

CREATE TABLE tasks (
    execution INTEGER PRIMARY KEY REFERENCES executions (key),
    step_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    lane TEXT NOT NULL CHECK (lane IN ('builtin', 'sandbox', 'container')),
    type TEXT NOT NULL,
    version TEXT NOT NULL,
    priority INTEGER NOT NULL CHECK (priority IN (0, 1, 2)),
    state TEXT NOT NULL CHECK (state IN ('queued', 'leased', 'delayed')),
    -- queued: the place in the line (time plus a penalty by priority, so nothing starves)
    rank_ms INTEGER NOT NULL,
    queued_at_ms INTEGER NOT NULL,
    -- leased: when the lease ends; delayed: when it may be claimed again
    due_at_ms INTEGER,
    lease_id INTEGER,
    worker TEXT,
    claimed_at_ms INTEGER,
    deliveries INTEGER NOT NULL DEFAULT 0,
    CHECK ((due_at_ms IS NULL) = (state = 'queued')),
    CHECK ((lease_id IS NOT NULL) = (state = 'leased'))
) STRICT;

CREATE INDEX tasks_ready ON tasks (lane, rank_ms) WHERE state = 'queued';

CREATE INDEX tasks_due ON tasks (due_at_ms) WHERE state <> 'queued';

CREATE TABLE waits (
    execution INTEGER PRIMARY KEY REFERENCES executions (key),
    kind TEXT NOT NULL CHECK (kind IN ('time', 'event', 'signal', 'child', 'retry', 'pause')),
    step_id TEXT NOT NULL,
    reason TEXT,
    started_at_ms INTEGER NOT NULL,
    wake_at_ms INTEGER,
    -- when the execution is cancelled for waiting too long
    timeout_at_ms INTEGER NOT NULL,
    -- the earlier of the two
    due_at_ms INTEGER NOT NULL,
    event TEXT,
    filter TEXT,
    tenant TEXT NOT NULL,
    -- which children it waits for (keys from `children_first`), and how many have not ended
    children_first INTEGER,
    children INTEGER,
    children_left INTEGER,
    queued_at_ms INTEGER NOT NULL,
    -- a job may pause with or without one
    CHECK ((event IS NOT NULL) = (kind = 'event') OR kind = 'pause'),
    CHECK ((children_first IS NOT NULL) = (kind = 'child')),
    CHECK ((children IS NOT NULL) = (kind = 'child')),
    CHECK ((children_left IS NOT NULL) = (kind = 'child'))
) STRICT;

CREATE INDEX waits_due ON waits (due_at_ms);

CREATE INDEX waits_by_event ON waits (event, tenant) WHERE event IS NOT NULL;

CREATE TABLE jobs (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    execution INTEGER NOT NULL REFERENCES executions (key),
    -- steps executed when the step began: the same for all attempts of the step, another when the
    -- flow comes back to it
    visit INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    type TEXT NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN (
        'queued', 'running', 'paused', 'completed', 'failed', 'cancelled')),
    step_attempt INTEGER NOT NULL,
    -- instances so far, and how many were lost in this attempt of the step
    attempt INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    attempts_max INTEGER NOT NULL,
    -- the container that has it: only that one may write
    instance TEXT,
    container TEXT,
    -- the instance's last applied message
    seq INTEGER NOT NULL,
    resources TEXT NOT NULL,
    nanos_per_s INTEGER NOT NULL CHECK (nanos_per_s >= 0),
    ttl_default_ms INTEGER NOT NULL,
    ttl_ms INTEGER NOT NULL,
    ttl_soft_ms INTEGER NOT NULL,
    ttl_hard_ms INTEGER NOT NULL,
    -- active time of earlier attempts of the step
    active_before_ns INTEGER NOT NULL,
    checkpoint_bytes_max INTEGER NOT NULL,
    percent REAL,
    message TEXT,
    eta_ms INTEGER,
    progress_at_ms INTEGER,
    -- of the last event job.progress
    progress_told_at_ms INTEGER,
    heartbeat_at_ms INTEGER,
    -- how its handler's pause has ended, as JSON, until a checkpoint knows it
    resume TEXT,
    -- how the last pause has ended, until an instance has begun again
    resuming TEXT CHECK (resuming IN ('event', 'hand', 'time')),
    paused_by_hand INTEGER NOT NULL CHECK (paused_by_hand IN (0, 1)),
    paused_at_ms INTEGER,
    last_pause_ms INTEGER NOT NULL,
    paused_ms INTEGER NOT NULL,
    error TEXT,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    started_at_ms INTEGER,
    finished_at_ms INTEGER,
    -- when its checkpoints go
    expires_at_ms INTEGER,
    UNIQUE (execution, step_id, visit),
    CHECK ((finished_at_ms IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled'))),
    CHECK ((paused_at_ms IS NOT NULL) = (state = 'paused')),
    CHECK (state <> 'running' OR instance IS NOT NULL),
    CHECK (finished_at_ms IS NULL OR instance IS NULL),
    CHECK (expires_at_ms IS NULL OR finished_at_ms IS NOT NULL)
) STRICT;

CREATE UNIQUE INDEX jobs_live ON jobs (execution) WHERE finished_at_ms IS NULL;

CREATE INDEX jobs_by_state ON jobs (state);

CREATE UNIQUE INDEX jobs_by_instance ON jobs (instance) WHERE instance IS NOT NULL;

CREATE INDEX jobs_by_expiry ON jobs (expires_at_ms) WHERE expires_at_ms IS NOT NULL;

CREATE TABLE checkpoints (
    job INTEGER NOT NULL REFERENCES jobs (key),
    name TEXT NOT NULL,
    -- of what is stored
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    encoding TEXT NOT NULL CHECK (encoding IN ('json', 'bytes')),
    compression TEXT NOT NULL CHECK (compression IN ('none', 'zlib')),
    sha256 TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    saved_at_ms INTEGER NOT NULL,
    data BLOB,
    -- for large ones: below the folder of checkpoints
    file TEXT,
    UNIQUE (job, name),
    CHECK ((data IS NULL) = (file IS NOT NULL))
) STRICT;

CREATE TABLE segments (
    job INTEGER NOT NULL REFERENCES jobs (key),
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    -- the machine's boot, within which nanoseconds of CLOCK_BOOTTIME can be compared
    boot TEXT NOT NULL,
    started_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    ended INTEGER NOT NULL CHECK (ended IN (0, 1)),
    started_at_ms INTEGER NOT NULL,
    PRIMARY KEY (job, number),
    CHECK (last_ns >= started_ns)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX segments_open ON segments (job) WHERE ended = 0;

CREATE TABLE job_charges (
    job INTEGER NOT NULL REFERENCES jobs (key),
    number INTEGER NOT NULL,
    execution INTEGER NOT NULL REFERENCES executions (key),
    -- of the attempt in the execution's history; NULL: it was cancelled
    seq INTEGER,
    at_ms INTEGER NOT NULL,
    tier TEXT NOT NULL,
    nanos INTEGER NOT NULL CHECK (nanos >= 0),
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX job_charges_by_attempt ON job_charges (execution, seq) WHERE seq IS NOT NULL;

CREATE INDEX job_charges_by_time ON job_charges (at_ms);

CREATE TABLE images (
    key INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('runtime', 'handler')),
    -- of a runtime its name, of a handler its package's digest
    name TEXT NOT NULL UNIQUE,
    -- the runtime that it is or stands on
    runtime TEXT NOT NULL,
    -- absent: it was removed, or is another's now; it is built when somebody needs it
    state TEXT NOT NULL CHECK (state IN ('wanted', 'building', 'ready', 'failed', 'absent')),
    image_id TEXT,
    size_bytes INTEGER NOT NULL,
    own_bytes INTEGER NOT NULL,
    wanted_at_ms INTEGER NOT NULL,
    -- an image that was made before then does not do; 0: any
    since_ms INTEGER NOT NULL,
    -- when the last build ended
    built_at_ms INTEGER,
    used_at_ms INTEGER,
    -- the end of what the last build printed
    log TEXT,
    CHECK ((image_id IS NOT NULL) = (state = 'ready'))
) STRICT;

CREATE INDEX images_wanted ON images (wanted_at_ms) WHERE state IN ('wanted', 'building');
