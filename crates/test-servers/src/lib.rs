//! Private PostgreSQL, Redis and NATS servers on free ports, for tests.
