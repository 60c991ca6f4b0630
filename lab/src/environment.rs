use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

/// The machine and the build of a run; no host name and no path, so that a report can be published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Environment {
    /// Cores that this process may use.
    pub cores: usize,
    /// The model of the processor, where the system says it.
    pub processor: Option<String>,
    /// The operating system: "Debian GNU/Linux 12 (bookworm), Linux 6.1.0".
    pub system: String,
    /// "x86_64".
    pub architecture: String,
    /// "release" or "debug"; figures of a debug build are not to be trusted.
    pub build: String,
    /// The version of this crate.
    pub greenwave: String,
}

impl Environment {
    /// The environment of this process.
    #[must_use]
    pub fn here() -> Self {
        Environment {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: value_in("/proc/cpuinfo", "model name", ':'),
            system: system(),
            architecture: std::env::consts::ARCH.to_owned(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            greenwave: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.cores, if self.cores == 1 { "core" } else { "cores" })?;
        if let Some(processor) = &self.processor {
            write!(f, " of {processor}")?;
        }
        write!(
            f,
            ", {}, {}; Greenwave {}, {} build",
            self.system, self.architecture, self.greenwave, self.build
        )
    }
}

fn system() -> String {
    let os = if cfg!(target_os = "linux") { "Linux" } else { std::env::consts::OS };
    // The version alone: what follows the first dash is the name that somebody gave their own build.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = release.trim().split('-').next().unwrap_or_default();
    let kernel = format!("{os} {version}");
    match value_in("/etc/os-release", "PRETTY_NAME", '=') {
        Some(name) => format!("{name}, {}", kernel.trim()),
        None => kernel.trim().to_owned(),
    }
}

/// The value of the first line of a file that starts with `key`.
fn value_in(file: &str, key: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let (_, value) = line.split_once(separator)?;
    Some(value.trim().trim_matches('"').to_owned()).filter(|value| !value.is_empty())
}
