-- Images that containers of stateful handlers are started from.
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
