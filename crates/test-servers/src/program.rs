use std::{
    fs,
    path::{Path, PathBuf},
};

/// What to do about a missing program, after its install line.
pub const MISSING_HINT: &str = "or run `cargo xtask test`, which installs what is missing";

/// A program that tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Creates a PostgreSQL data directory.
    Initdb,
    /// The PostgreSQL server.
    Postgres,
    /// The PostgreSQL client.
    Psql,
    /// The Redis server, or what `GREENWAVE_TEST_REDIS_SERVER` names instead: `valkey-server`.
    RedisServer,
    /// The Redis client.
    RedisCli,
    /// The NATS server.
    NatsServer,
    /// The browser of the dashboard's tests.
    Chromium,
    /// Drives Chromium.
    Chromedriver,
    /// What the printed examples are tried with.
    Curl,
    /// The pooling proxy of PostgreSQL.
    Pgbouncer,
    /// Makes certificates.
    Openssl,
    /// The extension by which PostgreSQL plans with indexes that do not exist.
    Hypopg,
    /// Attacks by being slow.
    Slowhttptest,
}

impl Program {
    /// All of them.
    pub const ALL: [Program; 13] = [
        Program::Initdb,
        Program::Postgres,
        Program::Psql,
        Program::RedisServer,
        Program::RedisCli,
        Program::NatsServer,
        Program::Chromium,
        Program::Chromedriver,
        Program::Curl,
        Program::Pgbouncer,
        Program::Openssl,
        Program::Hypopg,
        Program::Slowhttptest,
    ];

    fn name(self) -> &'static str {
        match self {
            Program::Initdb => "initdb",
            Program::Postgres => "postgres",
            Program::Psql => "psql",
            Program::RedisServer => "redis-server",
            Program::RedisCli => "redis-cli",
            Program::NatsServer => "nats-server",
            Program::Chromium => "chromium",
            Program::Chromedriver => "chromedriver",
            Program::Curl => "curl",
            Program::Pgbouncer => "pgbouncer",
            Program::Openssl => "openssl",
            Program::Hypopg => "hypopg.control",
            Program::Slowhttptest => "slowhttptest",
        }
    }

    /// The package that has it, on Debian or Ubuntu; hypopg's depends on the PostgreSQL that is installed.
    pub fn package(self) -> String {
        let package = match self {
            Program::Initdb | Program::Postgres => "postgresql",
            Program::Psql => "postgresql-client",
            Program::RedisServer => "redis-server",
            Program::RedisCli => "redis-tools",
            Program::NatsServer => "nats-server",
            Program::Chromium if is_ubuntu() => "chromium-browser",
            Program::Chromium => "chromium",
            Program::Chromedriver if is_ubuntu() => "chromium-chromedriver",
            Program::Chromedriver => "chromium-driver",
            Program::Curl => "curl",
            Program::Pgbouncer => "pgbouncer",
            Program::Openssl => "openssl",
            Program::Slowhttptest => "slowhttptest",
            Program::Hypopg => return format!("postgresql-{}-hypopg", postgres_version()),
        };
        package.to_owned()
    }

    /// Where it is installed, if it is.
    pub fn find(self) -> Option<PathBuf> {
        if self == Program::Hypopg {
            let folder = Path::new("/usr/share/postgresql").join(postgres_version()).join("extension");
            return Some(folder.join(self.name())).filter(|file| file.is_file());
        }
        let server =
            std::env::var("GREENWAVE_TEST_REDIS_SERVER").ok().filter(|_| self == Program::RedisServer);
        let name = server.as_deref().unwrap_or(self.name());
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Debian keeps PostgreSQL's server programs out of the PATH, in a folder a version.
        let postgres = Path::new(POSTGRES).join(postgres_version()).join("bin");
        std::env::split_paths(&path)
            .chain([postgres])
            .chain([Path::new("/usr/sbin").to_path_buf()])
            .map(|folder| folder.join(name))
            .find(|file| file.is_file())
    }

    /// Where it is installed.
    ///
    /// # Panics
    /// When it is not, with the line that installs it.
    pub fn path(self) -> PathBuf {
        self.find().unwrap_or_else(|| {
            panic!(
                "this test wants `{}`, which is not installed: apt-get install -y {} ({MISSING_HINT})",
                self.name(),
                self.package(),
            )
        })
    }
}

const POSTGRES: &str = "/usr/lib/postgresql";

/// The newest that is installed; empty if none is.
fn postgres_version() -> String {
    let versions = fs::read_dir(POSTGRES).into_iter().flatten().flatten();
    let versions = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    versions.max().map(|version| version.to_string()).unwrap_or_default()
}

fn is_ubuntu() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|release| release.lines().any(|line| line == "ID=ubuntu"))
}
