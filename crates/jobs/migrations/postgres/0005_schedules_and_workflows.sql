CREATE TABLE greenwave_jobs_schedules (
    name       text        PRIMARY KEY,
    -- When it ticks, and the job it pushes, both as JSON: compared as text to see whether a definition has changed.
    definition text        NOT NULL,
    job        text        NOT NULL,
    next_at    timestamptz NOT NULL,
    last_at    timestamptz,
    paused     boolean     NOT NULL DEFAULT false
);
CREATE INDEX greenwave_jobs_schedules_next ON greenwave_jobs_schedules (next_at) WHERE NOT paused;

ALTER TABLE greenwave_jobs ADD COLUMN scheduled_for timestamptz;
ALTER TABLE greenwave_jobs_dead ADD COLUMN scheduled_for timestamptz;

-- The job after_id waits for before_id, or did (then `ended`, kept while the result is of use to it).
CREATE TABLE greenwave_jobs_dependency (
    before_id bigint  NOT NULL,
    after_id  bigint  NOT NULL,
    -- after_id runs even if before_id dies.
    anyway    boolean NOT NULL,
    ended     boolean NOT NULL DEFAULT false,
    PRIMARY KEY (before_id, after_id)
);
CREATE INDEX greenwave_jobs_dependency_after ON greenwave_jobs_dependency (after_id);
