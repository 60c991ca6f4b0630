//! Private PostgreSQL, PgBouncer, Redis and NATS servers for tests; Redis also with TLS, as a cluster, and watched by a
//! sentinel.
//!
//! Each server runs in a temporary directory on a free loopback port, and ends with the process that started it,
//! however that ends. `cargo xtask test` starts one of each and hands their addresses down by environment; a plain
//! `cargo test` starts them itself, once a test binary. A missing program is a panic with the line that installs it,
//! never a silent skip.
//!
//! ```no_run
//! let url = greenwave_test_servers::postgres_database(); // a fresh, empty database
//! let mut redis = greenwave_test_servers::Server::redis(); // a server of one's own, to kill and restart
//! redis.kill();
//! redis.start();
//! ```

mod certificates;
mod groups;
mod program;
mod server;

use std::{
    env, process,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

pub use groups::{RedisCluster, RedisSentinel};
pub use program::{MISSING_HINT, Program};
pub use server::Server;

static POSTGRES: Shared = Shared::new("GREENWAVE_TEST_POSTGRES");
static REDIS: Shared = Shared::new("GREENWAVE_TEST_REDIS");
static NATS: Shared = Shared::new("GREENWAVE_TEST_NATS");
static NEXT: AtomicU32 = AtomicU32::new(0);

/// How many logical databases a test Redis has; enough that concurrent tests never meet in one.
pub(crate) const REDIS_DATABASES: u32 = 4096;

/// The URL of a fresh, empty PostgreSQL database, on a server shared by the tests of this process.
pub fn postgres_database() -> String {
    let server = POSTGRES.url(Server::postgres);
    let name = format!("test_{}_{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    server::run(
        &env::temp_dir(),
        Program::Psql,
        &[&server, "-qXc", &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")],
    );
    let base = server.rsplit_once('/').map_or(server.as_str(), |(base, _)| base);
    format!("{base}/{name}")
}

/// The URL of an empty logical database of a Redis shared by the tests of this process.
pub fn redis_url() -> String {
    let server = REDIS.url(Server::redis);
    // Test processes that share one server start at different places.
    let offset = process::id().wrapping_mul(97);
    let database = offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % REDIS_DATABASES;
    let url = format!("{}/{database}", server.trim_end_matches('/'));
    // Only where there is something: of a FLUSHDB, Redis tells the clients of all its databases.
    let flush = "if redis.call('DBSIZE') > 0 then redis.call('FLUSHDB') end";
    server::run(&env::temp_dir(), Program::RedisCli, &["-u", &url, "EVAL", flush, "0"]);
    url
}

/// The URL of a NATS server with JetStream, shared by the tests of this process: choose unique subjects.
pub fn nats_url() -> String {
    NATS.url(Server::nats)
}

/// Environment for a child process whose tests should use these servers instead of starting their own.
pub fn environment(postgres: &Server, redis: &Server, nats: &Server) -> [(&'static str, String); 3] {
    [(POSTGRES.variable, postgres.url()), (REDIS.variable, redis.url()), (NATS.variable, nats.url())]
}

/// A server that this process starts on first use, unless its environment names one.
struct Shared {
    variable: &'static str,
    server: OnceLock<Server>,
}

impl Shared {
    const fn new(variable: &'static str) -> Shared {
        Shared { variable, server: OnceLock::new() }
    }

    fn url(&self, start: fn() -> Server) -> String {
        env::var(self.variable).unwrap_or_else(|_| self.server.get_or_init(start).url())
    }
}
