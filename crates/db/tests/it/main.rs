//! Pools on real databases, and the batch loader.

#![allow(clippy::unwrap_used)]

#[cfg(all(feature = "index-advisor", feature = "postgres"))]
mod advisor;
#[cfg(all(feature = "postgres", feature = "index-advisor"))]
mod advisor_findings;
#[cfg(all(feature = "index-advisor", feature = "sqlite"))]
mod advisor_sqlite;
#[cfg(all(feature = "index-advisor", feature = "sqlite"))]
mod advisor_sqlite_odd;
#[cfg(all(feature = "postgres", feature = "index-advisor"))]
mod advisor_suite;
mod batch;
mod batch_lists;
mod batch_sources;
mod config;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod postgres_drops;
#[cfg(feature = "postgres")]
mod postgres_faults;
#[cfg(feature = "postgres")]
mod postgres_holds;
#[cfg(feature = "postgres")]
mod postgres_pgbouncer;
#[cfg(feature = "postgres")]
mod postgres_silence;
#[cfg(all(feature = "postgres", feature = "tracing-layer"))]
mod query_stats_layer;
#[cfg(feature = "postgres")]
mod query_stats_postgres;
mod query_stats_shapes;
#[cfg(feature = "sqlite")]
mod query_stats_sqlite;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod signals;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "sqlite")]
mod sqlite_crash;
#[cfg(feature = "sqlite")]
mod sqlite_faults;
#[cfg(feature = "sqlite")]
mod sqlite_group;
#[cfg(feature = "sqlite")]
mod sqlite_limits;

/// An error with its causes, as a program prints it.
#[cfg(feature = "postgres")]
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
