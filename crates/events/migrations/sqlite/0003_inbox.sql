-- Events from elsewhere whose effects are in this database: a handler that finds its event here has handled it before.
CREATE TABLE greenwave_event_inbox (
    source       TEXT NOT NULL,
    id           TEXT NOT NULL,
    subscription TEXT NOT NULL,
    received_at  INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    PRIMARY KEY (source, id, subscription)
) STRICT, WITHOUT ROWID;
CREATE INDEX greenwave_event_inbox_received ON greenwave_event_inbox (subscription, received_at);
