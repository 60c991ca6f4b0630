-- state 3, blocked: waits for other jobs to end (`pending` of them).
-- position: the order of start among the ready jobs of a queue and priority. A job gets a fresh one each time it
-- becomes ready, so that below some position nothing ever becomes ready again.
CREATE SEQUENCE greenwave_jobs_position;

ALTER TABLE greenwave_jobs
    ADD COLUMN position   bigint  NOT NULL DEFAULT nextval('greenwave_jobs_position'),
    -- The version of the payload's type.
    ADD COLUMN version    integer NOT NULL DEFAULT 1,
    -- Jobs of one key share limits, and take turns with other keys; in the order of their bytes, for that is the
    -- quickest to compare.
    ADD COLUMN key        text COLLATE "C",
    ADD COLUMN timeout_ms bigint,
    -- How long the job is kept once it is completed; at 0 it is deleted.
    ADD COLUMN keep_ms    bigint  NOT NULL DEFAULT 0,
    ADD COLUMN pending    integer NOT NULL DEFAULT 0,
    -- True if other jobs wait for this one.
    ADD COLUMN awaited    boolean NOT NULL DEFAULT false,
    -- The W3C traceparent of who pushed.
    ADD COLUMN trace      text,
    ADD COLUMN progress   json;

-- Priorities were any number around 0; now 0 is the most urgent of ten, and 5 the default.
UPDATE greenwave_jobs SET priority = least(greatest(priority + 5, 0), 9);

DROP INDEX greenwave_jobs_ready;
CREATE INDEX greenwave_jobs_ready ON greenwave_jobs (queue, priority, position) WHERE state = 0 AND key IS NULL;
CREATE INDEX greenwave_jobs_keyed ON greenwave_jobs (queue, key, priority, position) WHERE state = 0 AND key IS NOT NULL;

UPDATE greenwave_jobs_dead SET priority = least(greatest(priority + 5, 0), 9);
ALTER TABLE greenwave_jobs_dead
    ADD COLUMN version    integer NOT NULL DEFAULT 1,
    ADD COLUMN key        text,
    ADD COLUMN timeout_ms bigint,
    ADD COLUMN keep_ms    bigint  NOT NULL DEFAULT 0,
    ADD COLUMN awaited    boolean NOT NULL DEFAULT false,
    ADD COLUMN trace      text,
    ADD COLUMN progress   json;
