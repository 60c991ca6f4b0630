-- The hot table holds live jobs only: a completed job is deleted, a dead one moves to greenwave_jobs_dead.
-- state: 0 ready, 1 scheduled (waits for run_at), 2 leased (a worker runs it until lease_until).
-- Times are milliseconds since 1970, by SQLite's own clock.
CREATE TABLE greenwave_jobs (
    -- AUTOINCREMENT: the id of a completed job must not be given to the next.
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    queue        TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    payload      TEXT    NOT NULL,
    priority     INTEGER NOT NULL,
    state        INTEGER NOT NULL,
    run_at       INTEGER NOT NULL,
    failures     INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    crashes      INTEGER NOT NULL DEFAULT 0,
    lease_id     INTEGER,
    lease_until  INTEGER,
    errors       TEXT    NOT NULL DEFAULT '[]',
    created_at   INTEGER NOT NULL
) STRICT;

CREATE INDEX greenwave_jobs_ready ON greenwave_jobs (queue, priority, id) WHERE state = 0;
CREATE INDEX greenwave_jobs_scheduled ON greenwave_jobs (run_at) WHERE state = 1;
CREATE INDEX greenwave_jobs_leased ON greenwave_jobs (lease_until) WHERE state = 2;

-- One row, counted up by each fetch: a lease id is never used twice, so a worker that lost its lease cannot
-- complete what another holds.
CREATE TABLE greenwave_jobs_lease (last INTEGER NOT NULL) STRICT;
INSERT INTO greenwave_jobs_lease VALUES (0);

CREATE TABLE greenwave_jobs_dead (
    id           INTEGER PRIMARY KEY,
    queue        TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    payload      TEXT    NOT NULL,
    priority     INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    reason       TEXT    NOT NULL,
    errors       TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    died_at      INTEGER NOT NULL
) STRICT;
