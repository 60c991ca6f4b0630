-- Completed jobs that are kept, by the day (UTC) in which they expire: a day that is over is dropped whole. The queue
-- makes the partitions of the days ahead; the default one takes what is kept for longer than those, row by row.
CREATE TABLE greenwave_jobs_done (
    id           bigint      NOT NULL,
    queue        text        NOT NULL,
    name         text        NOT NULL,
    version      integer     NOT NULL,
    payload      json        NOT NULL,
    result       json,
    attempts     integer     NOT NULL,
    pushed_at    timestamptz NOT NULL,
    completed_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL
) PARTITION BY RANGE (expires_at);

CREATE INDEX greenwave_jobs_done_id ON greenwave_jobs_done (id);

CREATE TABLE greenwave_jobs_done_later PARTITION OF greenwave_jobs_done DEFAULT;
CREATE INDEX greenwave_jobs_done_later_expiry ON greenwave_jobs_done_later (expires_at);

-- Half of the table's rows are dead within a second, so vacuum as soon as it pays, and at full speed. Its end is not
-- cut off when it is empty: that takes an exclusive lock, and the next rush needs the room again.
ALTER TABLE greenwave_jobs SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = false
);
