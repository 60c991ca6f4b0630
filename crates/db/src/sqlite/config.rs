//! The knobs of a SQLite pool, and their defaults.

use serde::{Deserialize, Serialize};

use crate::PoolConfig;

/// How a SQLite pool holds its connections, and how much an acknowledged write survives.
///
/// Where only [`PoolConfig`] is given, the rest has its defaults.
///
/// ```
/// use greenwave_db::{PoolConfig, sqlite::{Config, Synchronous}};
///
/// let config = Config { synchronous: Synchronous::Full, ..PoolConfig { max_connections: 8, ..Default::default() }.into() };
/// assert_eq!(config.pool.max_statement.as_secs(), 30);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What both databases' pools have in common.
    pub pool: PoolConfig,
    /// What an acknowledged write survives. Default: `normal`.
    pub synchronous: Synchronous,
}

impl Default for Config {
    fn default() -> Self {
        PoolConfig::default().into()
    }
}

impl From<PoolConfig> for Config {
    fn from(pool: PoolConfig) -> Self {
        Self { pool, synchronous: Synchronous::default() }
    }
}

/// What an acknowledged write survives. In WAL mode none of these damages the file when the process crashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// A crash of the process, not one of the machine: as `Normal`, but after a power cut the file itself may be
    /// damaged, for checkpoints are not synced either. For data that can be made again.
    Off,
    /// A crash of the process. A power cut or a crash of the system may lose the last transactions, of an intact
    /// file: the log is synced before a checkpoint, not at each commit.
    #[default]
    Normal,
    /// A power cut as well, if the disk keeps what it says it has kept: each commit waits for the log to be synced.
    Full,
}

impl Synchronous {
    pub(super) fn pragma(self) -> &'static str {
        match self {
            Self::Off => "OFF",
            Self::Normal => "NORMAL",
            Self::Full => "FULL",
        }
    }
}
