//! Database access for services under load: pools, batching that removes N+1, a slow-query log.
