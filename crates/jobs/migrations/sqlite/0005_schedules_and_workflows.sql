-- As in PostgreSQL's migration.
CREATE TABLE greenwave_jobs_schedules (
    name       TEXT    PRIMARY KEY,
    definition TEXT    NOT NULL,
    job        TEXT    NOT NULL,
    next_at    INTEGER NOT NULL,
    last_at    INTEGER,
    paused     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX greenwave_jobs_schedules_next ON greenwave_jobs_schedules (next_at) WHERE NOT paused;

ALTER TABLE greenwave_jobs ADD COLUMN scheduled_for INTEGER;
ALTER TABLE greenwave_jobs_dead ADD COLUMN scheduled_for INTEGER;

CREATE TABLE greenwave_jobs_dependency (
    before_id INTEGER NOT NULL,
    after_id  INTEGER NOT NULL,
    anyway    INTEGER NOT NULL,
    ended     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (before_id, after_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX greenwave_jobs_dependency_after ON greenwave_jobs_dependency (after_id);
