-- Published events, from their publisher's transaction until the relay takes them.
CREATE TABLE greenwave_event_outbox (
    position   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id         uuid NOT NULL,
    event      text NOT NULL,
    version    bigint NOT NULL,
    payload    json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who receives what. Rows stay when no process of the subscriber is up.
CREATE TABLE greenwave_event_subscription (
    name       text NOT NULL,
    event      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event, name)
);

-- A lease id never repeats, so it fences a holder that has lost its lease.
CREATE SEQUENCE greenwave_event_lease;

-- One event for one subscription, until it is handled. Three states, told by two columns:
-- ready (both null), waiting for a retry (due_at), leased (due_at is the lease's end, lease_id its holder).
CREATE TABLE greenwave_event_delivery (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription text NOT NULL,
    event        text NOT NULL,
    event_id     uuid NOT NULL,
    version      bigint NOT NULL,
    payload      json NOT NULL,
    published_at timestamptz NOT NULL,
    attempt      bigint NOT NULL DEFAULT 0,
    due_at       timestamptz,
    lease_id     bigint,
    error        text
);

-- Not in the order of the primary key: a planner could take that for the order, and read past every other
-- subscription's backlog.
CREATE INDEX greenwave_event_delivery_ready ON greenwave_event_delivery (subscription, event, published_at, id)
    WHERE due_at IS NULL;
CREATE INDEX greenwave_event_delivery_due ON greenwave_event_delivery (due_at)
    WHERE due_at IS NOT NULL;

-- Deliveries that were given up, kept with their last error. The id is the delivery's.
CREATE TABLE greenwave_event_dead (
    id           bigint PRIMARY KEY,
    subscription text NOT NULL,
    event        text NOT NULL,
    event_id     uuid NOT NULL,
    version      bigint NOT NULL,
    payload      json NOT NULL,
    published_at timestamptz NOT NULL,
    attempt      bigint NOT NULL,
    error        text NOT NULL,
    died_at      timestamptz NOT NULL DEFAULT now()
);
