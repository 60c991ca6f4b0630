//! Typed events through a transactional outbox, with durable subscriptions.
