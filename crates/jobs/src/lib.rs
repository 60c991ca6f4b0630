//! Durable background jobs on SQLite and PostgreSQL, pushed alone or in the caller's transaction.
