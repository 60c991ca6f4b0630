-- One row: every id, position and lease id is counted up from here, in the transaction that uses it. So none is given
-- twice, a worker that lost its lease cannot complete what another holds, and what becomes ready later starts later.
ALTER TABLE greenwave_jobs_lease RENAME TO greenwave_jobs_sequence;
UPDATE greenwave_jobs_sequence SET last = max(last,
    (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'greenwave_jobs'),
    (SELECT coalesce(max(id), 0) FROM greenwave_jobs_dead));

-- The same table without AUTOINCREMENT, which would keep a second count and costs each insert a fifth.
CREATE TABLE greenwave_jobs_new (
    id           INTEGER PRIMARY KEY,
    queue        TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    version      INTEGER NOT NULL,
    payload      TEXT    NOT NULL,
    priority     INTEGER NOT NULL,
    state        INTEGER NOT NULL,
    position     INTEGER NOT NULL,
    run_at       INTEGER NOT NULL,
    failures     INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    crashes      INTEGER NOT NULL DEFAULT 0,
    lease_id     INTEGER,
    lease_until  INTEGER,
    timeout_ms   INTEGER,
    keep_ms      INTEGER NOT NULL DEFAULT 0,
    pending      INTEGER NOT NULL DEFAULT 0,
    awaited      INTEGER NOT NULL DEFAULT 0,
    created_at   INTEGER NOT NULL,
    key          TEXT,
    trace        TEXT,
    errors       TEXT    NOT NULL DEFAULT '[]',
    progress     TEXT
) STRICT;
INSERT INTO greenwave_jobs_new
SELECT id, queue, name, version, payload, priority, state, position, run_at, failures, max_attempts, crashes, lease_id,
    lease_until, timeout_ms, keep_ms, pending, awaited, created_at, key, trace, errors, progress
FROM greenwave_jobs;
DROP TABLE greenwave_jobs;
ALTER TABLE greenwave_jobs_new RENAME TO greenwave_jobs;

CREATE INDEX greenwave_jobs_ready ON greenwave_jobs (queue, priority, position) WHERE state = 0 AND key IS NULL;
CREATE INDEX greenwave_jobs_keyed ON greenwave_jobs (queue, key, priority, position) WHERE state = 0 AND key IS NOT NULL;
CREATE INDEX greenwave_jobs_scheduled ON greenwave_jobs (run_at) WHERE state = 1;
CREATE INDEX greenwave_jobs_leased ON greenwave_jobs (lease_until) WHERE state = 2;

-- Completed jobs that are kept, until expires_at.
CREATE TABLE greenwave_jobs_done (
    id           INTEGER PRIMARY KEY,
    queue        TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    version      INTEGER NOT NULL,
    payload      TEXT    NOT NULL,
    result       TEXT,
    attempts     INTEGER NOT NULL,
    pushed_at    INTEGER NOT NULL,
    completed_at INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX greenwave_jobs_done_expires ON greenwave_jobs_done (expires_at);
