-- state 3, blocked: waits for other jobs to end (`pending` of them). The rest as in PostgreSQL's migration.
ALTER TABLE greenwave_jobs ADD COLUMN position   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE greenwave_jobs ADD COLUMN version    INTEGER NOT NULL DEFAULT 1;
ALTER TABLE greenwave_jobs ADD COLUMN key        TEXT;
ALTER TABLE greenwave_jobs ADD COLUMN timeout_ms INTEGER;
ALTER TABLE greenwave_jobs ADD COLUMN keep_ms    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE greenwave_jobs ADD COLUMN pending    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE greenwave_jobs ADD COLUMN awaited    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE greenwave_jobs ADD COLUMN trace      TEXT;
ALTER TABLE greenwave_jobs ADD COLUMN progress   TEXT;

UPDATE greenwave_jobs SET position = id, priority = min(max(priority + 5, 0), 9);

DROP INDEX greenwave_jobs_ready;
CREATE INDEX greenwave_jobs_ready ON greenwave_jobs (queue, priority, position) WHERE state = 0 AND key IS NULL;
CREATE INDEX greenwave_jobs_keyed ON greenwave_jobs (queue, key, priority, position) WHERE state = 0 AND key IS NOT NULL;

UPDATE greenwave_jobs_dead SET priority = min(max(priority + 5, 0), 9);
ALTER TABLE greenwave_jobs_dead ADD COLUMN version    INTEGER NOT NULL DEFAULT 1;
ALTER TABLE greenwave_jobs_dead ADD COLUMN key        TEXT;
ALTER TABLE greenwave_jobs_dead ADD COLUMN timeout_ms INTEGER;
ALTER TABLE greenwave_jobs_dead ADD COLUMN keep_ms    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE greenwave_jobs_dead ADD COLUMN awaited    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE greenwave_jobs_dead ADD COLUMN trace      TEXT;
ALTER TABLE greenwave_jobs_dead ADD COLUMN progress   TEXT;
