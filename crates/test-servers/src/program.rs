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
    /// The Redis server.
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
}

impl Program {
    /// All of them.
    pub const ALL: [Program; 9] = [
        Program::Initdb,
        Program::Postgres,
        Program::Psql,
        Program::RedisServer,
        Program::RedisCli,
        Program::NatsServer,
        Program::Chromium,
        Program::Chromedriver,
        Program::Curl,
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
        }
    }

    /// The package that has it, on Debian or Ubuntu.
    pub fn package(self) -> &'static str {
        match self {
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
        }
    }

    /// Where it is installed, if it is.
    pub fn find(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Debian keeps PostgreSQL's server programs out of the PATH, in a folder a version.
        let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
            .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
            .unwrap_or_default();
        versions.sort();
        std::env::split_paths(&path)
            .chain(versions.into_iter().rev())
            .chain([Path::new("/usr/sbin").to_path_buf()])
            .map(|folder| folder.join(self.name()))
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

fn is_ubuntu() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|release| release.lines().any(|line| line == "ID=ubuntu"))
}
