-- As in PostgreSQL's migration.
CREATE TABLE greenwave_jobs_queues (
    name   TEXT    PRIMARY KEY,
    paused INTEGER NOT NULL DEFAULT 0,
    limits TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE greenwave_jobs_turns (
    queue       TEXT PRIMARY KEY,
    last_key    TEXT NOT NULL,
    tokens      REAL,
    refilled_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE greenwave_jobs_unique (
    name   TEXT    NOT NULL,
    key    TEXT    NOT NULL,
    job_id INTEGER NOT NULL,
    until  INTEGER,
    states INTEGER NOT NULL,
    PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;
