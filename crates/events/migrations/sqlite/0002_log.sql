-- What the events are about, for subscriptions that keep order.
ALTER TABLE greenwave_event_outbox ADD COLUMN key TEXT;

-- Every published event, for as long as it is kept. SQLite commits one transaction after another, so positions become
-- visible in their order, and events are published right into the log.
CREATE TABLE greenwave_event_log (
    position     INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL,
    event        TEXT NOT NULL,
    version      INTEGER NOT NULL,
    key          TEXT,
    payload      TEXT NOT NULL,
    published_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    logged_at    INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
) STRICT;

-- One row: the last position that metrics have counted.
CREATE TABLE greenwave_event_counted (last INTEGER NOT NULL) STRICT;
INSERT INTO greenwave_event_counted VALUES (0);

-- Up to where each subscription has taken events.
CREATE TABLE greenwave_event_cursor (
    name     TEXT PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO greenwave_event_cursor SELECT DISTINCT name, 0 FROM greenwave_event_subscription;

-- Events that a process handles: those of the subscription from first to last, without those that were set aside (a JSON
-- array of positions). The row goes when all have ended.
CREATE TABLE greenwave_event_range (
    lease_id    INTEGER PRIMARY KEY,
    name        TEXT NOT NULL,
    first       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    aside       TEXT NOT NULL DEFAULT '[]',
    owner       TEXT NOT NULL,
    lease_until INTEGER NOT NULL
) STRICT;

-- A delivery is now what could not be handled in its range: it failed, its process died, or it waits behind one of the
-- same key. Those that were there before stay what they were.
ALTER TABLE greenwave_event_delivery ADD COLUMN position INTEGER;
ALTER TABLE greenwave_event_delivery ADD COLUMN key TEXT;
ALTER TABLE greenwave_event_delivery ADD COLUMN errors TEXT NOT NULL DEFAULT '[]';
CREATE INDEX greenwave_event_delivery_keyed ON greenwave_event_delivery (subscription, key, position, id)
    WHERE key IS NOT NULL;

ALTER TABLE greenwave_event_dead ADD COLUMN position INTEGER;
ALTER TABLE greenwave_event_dead ADD COLUMN key TEXT;
ALTER TABLE greenwave_event_dead ADD COLUMN errors TEXT NOT NULL DEFAULT '[]';
