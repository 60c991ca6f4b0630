-- As in PostgreSQL's migration.
CREATE INDEX greenwave_jobs_dead_queue ON greenwave_jobs_dead (queue, name);

CREATE TABLE greenwave_jobs_observers (
    queue  TEXT    PRIMARY KEY,
    holder INTEGER NOT NULL,
    until  INTEGER NOT NULL
) STRICT;
