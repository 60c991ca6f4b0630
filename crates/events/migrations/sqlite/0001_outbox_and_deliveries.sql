-- Times are milliseconds since 1970.

-- Published events, from their publisher's transaction until the relay takes them.
CREATE TABLE greenwave_event_outbox (
    position   INTEGER PRIMARY KEY AUTOINCREMENT,
    -- A UUID, whoever writes it.
    id         TEXT NOT NULL CHECK (length(id) = 36 AND length(replace(id, '-', '')) = 32
                                    AND id NOT GLOB '*[^-0-9a-f]*'),
    event      TEXT NOT NULL,
    version    INTEGER NOT NULL,
    payload    TEXT NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
) STRICT;

-- Who receives what. Rows stay when no process of the subscriber is up.
CREATE TABLE greenwave_event_subscription (
    name       TEXT NOT NULL,
    event      TEXT NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    PRIMARY KEY (event, name)
) STRICT, WITHOUT ROWID;

-- One row: the last lease id. It never repeats, so it fences a holder that has lost its lease.
CREATE TABLE greenwave_event_lease (last INTEGER NOT NULL) STRICT;
INSERT INTO greenwave_event_lease VALUES (0);

-- One event for one subscription, until it is handled. Three states, told by two columns:
-- ready (both null), waiting for a retry (due_at), leased (due_at is the lease's end, lease_id its holder).
CREATE TABLE greenwave_event_delivery (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription TEXT NOT NULL,
    event        TEXT NOT NULL,
    event_id     TEXT NOT NULL,
    version      INTEGER NOT NULL,
    payload      TEXT NOT NULL,
    published_at INTEGER NOT NULL,
    attempt      INTEGER NOT NULL DEFAULT 0,
    due_at       INTEGER,
    lease_id     INTEGER,
    error        TEXT
) STRICT;

-- Not in the order of the primary key: a planner could take that for the order, and read past every other
-- subscription's backlog.
CREATE INDEX greenwave_event_delivery_ready ON greenwave_event_delivery (subscription, event, published_at, id)
    WHERE due_at IS NULL;
CREATE INDEX greenwave_event_delivery_due ON greenwave_event_delivery (due_at)
    WHERE due_at IS NOT NULL;

-- Deliveries that were given up, kept with their last error. The id is the delivery's.
CREATE TABLE greenwave_event_dead (
    id           INTEGER PRIMARY KEY,
    subscription TEXT NOT NULL,
    event        TEXT NOT NULL,
    event_id     TEXT NOT NULL,
    version      INTEGER NOT NULL,
    payload      TEXT NOT NULL,
    published_at INTEGER NOT NULL,
    attempt      INTEGER NOT NULL,
    error        TEXT NOT NULL,
    died_at      INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
) STRICT;
