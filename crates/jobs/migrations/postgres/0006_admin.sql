-- The dead of a queue are counted every few seconds.
CREATE INDEX greenwave_jobs_dead_queue ON greenwave_jobs_dead (queue, name);

-- Which worker reports a queue's depth and age, so that a fleet measures once, and sums of what it reports are right.
CREATE TABLE greenwave_jobs_observers (
    queue  text        PRIMARY KEY,
    holder bigint      NOT NULL,
    until  timestamptz NOT NULL
);
