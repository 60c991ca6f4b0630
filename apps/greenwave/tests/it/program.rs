//! Starts the program as a user would, and reads what it prints.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::client;

const START: Duration = Duration::from_secs(60);

/// A command of the program.
pub(crate) fn greenwave(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_greenwave"));
    command.args(arguments).env_remove("DATABASE_URL").env_remove("REDIS_URL").env("RUST_LOG", "info");
    command
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    greenwave(arguments).output().unwrap()
}

/// A running `greenwave up`.
pub(crate) struct Up {
    child: Child,
    pub service: String,
    pub dashboard: String,
    pub printed: String,
    pub took: Duration,
}

impl Up {
    /// Starts it on free ports with its data in `folder`, and waits until it says that it is up.
    pub(crate) fn start(folder: &TempDir, environment: &[(&str, &str)], arguments: &[&str]) -> Up {
        let started = Instant::now();
        let log = fs::File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
        let mut child = greenwave(&["up", "--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0"])
            .args(arguments)
            .current_dir(folder.path())
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut printed = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !printed.contains("Ctrl-C") {
            let Some(Ok(line)) = lines.next() else {
                panic!("it ended early:\n{}", fs::read_to_string(folder.path().join("log")).unwrap());
            };
            assert!(started.elapsed() < START, "not up in time");
            printed.push_str(&line);
            printed.push('\n');
        }
        let address = |label: &str| {
            let line = printed.lines().find(|line| line.trim().starts_with(label)).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        let (service, dashboard) = (address("service"), address("dashboard"));
        Up { child, service, dashboard, printed, took: started.elapsed() }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; whether it ended well.
    pub(crate) fn wait(mut self) -> bool {
        self.child.wait().unwrap().success()
    }

    /// Ends it as `kill -9` does, and waits until its children are gone too.
    pub(crate) async fn kill(mut self) {
        let children = self.instances().await;
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for (_, pid) in children {
            until("its children are gone", || is_gone(pid)).await;
        }
    }

    /// The instances that the dashboard shows, by name.
    pub(crate) async fn instances(&self) -> Vec<(String, Pid)> {
        let overview = self.overview().await;
        let rows = overview["instances"].as_array().unwrap();
        let row = |row: &Value| {
            let pid = i32::try_from(row["pid"].as_i64()?).ok()?;
            Some((row["name"].as_str()?.to_owned(), Pid::from_raw(pid)?))
        };
        rows.iter().filter_map(row).collect()
    }

    /// What the dashboard streams to its page.
    pub(crate) async fn overview(&self) -> Value {
        client::first_event(&format!("{}/events", self.dashboard), |event| event.get("instances").is_some())
            .await
    }

    /// Kills one of its children.
    pub(crate) async fn kill_instance(&self, name: &str) {
        let instances = self.instances().await;
        let (_, pid) = instances.iter().find(|(instance, _)| instance == name).unwrap();
        kill_process(*pid, Signal::KILL).unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("it had printed:\n{}", self.printed);
        }
    }
}

/// Whether a process has ended, even if nobody has asked for its exit status yet.
pub(crate) fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'))
}

/// Waits for something to become true, for up to 30 seconds.
pub(crate) async fn until(what: &str, mut test: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !test() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
