-- What the events are about, for subscriptions that keep order.
ALTER TABLE greenwave_event_outbox ADD COLUMN key text;

-- One row: the log's last position. Who moves events to the log holds its lock until the commit, so positions become
-- visible in their order and without gaps.
CREATE TABLE greenwave_event_head (last bigint NOT NULL);
INSERT INTO greenwave_event_head VALUES (0);

-- Every published event, for as long as it is kept.
CREATE TABLE greenwave_event_log (
    position     bigint PRIMARY KEY,
    id           uuid NOT NULL,
    event        text NOT NULL,
    version      bigint NOT NULL,
    key          text,
    payload      json NOT NULL,
    published_at timestamptz NOT NULL,
    logged_at    timestamptz NOT NULL DEFAULT now()
);

-- Up to where each subscription has taken events.
CREATE TABLE greenwave_event_cursor (
    name     text PRIMARY KEY,
    position bigint NOT NULL
);
INSERT INTO greenwave_event_cursor SELECT DISTINCT name, 0 FROM greenwave_event_subscription;

-- Events that a process handles: those of the subscription from first to last, without those that were set aside. The
-- row goes when all have ended.
CREATE TABLE greenwave_event_range (
    lease_id    bigint PRIMARY KEY DEFAULT nextval('greenwave_event_lease'),
    name        text NOT NULL,
    first       bigint NOT NULL,
    last        bigint NOT NULL,
    aside       bigint[] NOT NULL DEFAULT '{}',
    owner       uuid NOT NULL,
    lease_until timestamptz NOT NULL
);

-- A delivery is now what could not be handled in its range: it failed, its process died, or it waits behind one of the
-- same key. Those that were there before stay what they were.
ALTER TABLE greenwave_event_delivery ADD COLUMN position bigint;
ALTER TABLE greenwave_event_delivery ADD COLUMN key text;
ALTER TABLE greenwave_event_delivery ADD COLUMN errors jsonb NOT NULL DEFAULT '[]';
-- By the key's hash: an index takes no text of more than some 2,700 bytes.
CREATE INDEX greenwave_event_delivery_keyed
    ON greenwave_event_delivery (subscription, hashtextextended(key, 0), position, id)
    WHERE key IS NOT NULL;

ALTER TABLE greenwave_event_dead ADD COLUMN position bigint;
ALTER TABLE greenwave_event_dead ADD COLUMN key text;
ALTER TABLE greenwave_event_dead ADD COLUMN errors jsonb NOT NULL DEFAULT '[]';
