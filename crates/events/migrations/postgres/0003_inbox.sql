-- Events from elsewhere whose effects are in this database: a handler that finds its event here has handled it before.
CREATE TABLE greenwave_event_inbox (
    source       text NOT NULL,
    id           text NOT NULL,
    subscription text NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, id, subscription)
);
CREATE INDEX greenwave_event_inbox_received ON greenwave_event_inbox (subscription, received_at);
