//! What instances are given, and what they say of themselves.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use greenwave_edge::{
    Error, Health, InstanceState, LogEvent, Port, StopSignal, Supervisor, SupervisorConfig,
};
use rustix::process::{Signal, kill_process};
use tokio::net::TcpStream;

use crate::child::{children, until};
use crate::clients::{LIMIT, RunningProxy};
use crate::supervised::pid;

fn config() -> SupervisorConfig {
    SupervisorConfig { min_backoff: Duration::from_millis(20), ..Default::default() }
}

fn worker(script: &str) -> SupervisorConfig {
    let command = ["sh", "-c", script].map(String::from).to_vec();
    SupervisorConfig { command, health: Health::None, ..config() }
}

/// All that the command writes before it ends.
async fn output(config: SupervisorConfig) -> Vec<String> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let supervisor = Supervisor::new(SupervisorConfig { min_backoff: LIMIT, max_backoff: LIMIT, ..config })
        .logs(move |line| sink.lock().unwrap().push(line.text().into_owned()))
        .start()
        .unwrap();
    until(&supervisor, |instances| instances[0].last_exit.is_some()).await;
    supervisor.shutdown().await;
    let lines = lines.lock().unwrap();
    lines.clone()
}

#[tokio::test]
async fn variables_come_from_files_and_over_them_from_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let first = file("first", "export A='from first'\nB=first # note\nC=first\n");
    let second = file("second", "B=\"from second\"\n");
    let mut config = worker(r#"echo "$A, $B, $C, $(pwd)""#);
    config.env_files = vec![first.clone(), second];
    config.env = [("C", "from config")].into_iter().collect();
    config.working_dir = folder.path().canonicalize().unwrap();
    let there = config.working_dir.display().to_string();
    assert_eq!(output(config.clone()).await, [format!("from first, from second, from config, {there}")]);

    std::fs::write(&first, "A=1\nB s3cret\n").unwrap();
    let error = Supervisor::new(config.clone()).start().unwrap_err();
    assert_eq!(error.to_string(), format!("{}:2: no `=` after the name", first.display()));
    config.env_files = vec![folder.path().join("missing")];
    assert!(matches!(Supervisor::new(config).start().unwrap_err(), Error::EnvFile { .. }));
    let nowhere = SupervisorConfig { working_dir: folder.path().join("missing"), ..worker("true") };
    assert!(matches!(Supervisor::new(nowhere).start().unwrap_err(), Error::WorkingDir { .. }));
}

#[tokio::test]
async fn what_another_supervisor_told_this_process_is_not_passed_on() {
    let script =
        r#"echo "${LISTEN_FDS-none} ${LISTEN_PID-none} ${NOTIFY_SOCKET-none} ${WATCHDOG_USEC-none}""#;
    assert_eq!(output(worker(script)).await, ["none none none none"]);
}

#[tokio::test]
async fn words_before_the_command_run_it() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let words = ["env", "WRAPPED=yes"].map(String::from).to_vec();
    let supervisor = Supervisor::new(worker("echo $WRAPPED; exec sleep 1000"))
        .wrapper(words)
        .logs(move |line| sink.lock().unwrap().push(line.text().into_owned()))
        .start()
        .unwrap();
    until(&supervisor, |_| *lines.lock().unwrap() == ["yes"]).await;
}

#[tokio::test]
async fn an_instance_is_stopped_by_the_signal_of_its_choice() {
    let script = "trap 'echo asked; exit 0' INT; echo up; while :; do sleep 0.01; done";
    let config = SupervisorConfig { stop_signal: StopSignal::Int, ..worker(script) };
    let supervisor = Supervisor::new(config).logs(|_| ()).start().unwrap();
    let mut logs = supervisor.logs(None, 10);
    if logs.last.is_empty() {
        tokio::time::timeout(LIMIT, logs.next()).await.unwrap();
    }
    supervisor.shutdown().await;
    let last = supervisor.logs(Some("app-0"), 1).last.remove(0);
    assert_eq!(last.line().text(), "asked");
    assert_eq!(supervisor.instances()[0].last_exit.as_deref(), Some("exit status: 0"));
}

#[tokio::test]
async fn an_instance_that_says_when_it_is_ready_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    let mut config = SupervisorConfig {
        notify: true,
        health: Health::None,
        grace: Duration::from_millis(500),
        ..config()
    };
    config.env = [("GATE", gate.to_string_lossy())].into_iter().collect();
    let supervisor = children("notify", config.clone()).start().unwrap();
    // It has said nothing: a worker that merely lives would be ready by then.
    let error = supervisor.ready(Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    std::fs::write(&gate, "").unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    std::fs::remove_file(&gate).unwrap();
    until(&supervisor, |instances| instances[0].state == InstanceState::Stopping).await;
    // It hangs over it, and is ended when it has had its grace.
    let again = until(&supervisor, |instances| instances[0].restarts > 0).await;
    let exit = again[0].last_exit.as_deref().unwrap();
    assert!(exit.contains("it said that it stops and was still there after 500ms"), "{exit}");
    drop(supervisor);

    std::fs::write(&gate, "").unwrap();
    let config = SupervisorConfig { watchdog: Duration::from_millis(200), ..config };
    let supervisor = children("notify", config).start().unwrap();
    let again = until(&supervisor, |instances| instances[0].restarts > 0).await;
    let exit = again[0].last_exit.as_deref().unwrap();
    assert!(exit.contains("it sent no WATCHDOG=1 for 200ms"), "{exit}");
    let lines = supervisor.logs(None, 1000).last;
    assert!(lines.iter().any(|line| line.line().text() == "watchdog Some(\"200000\")"), "{lines:?}");
}

#[tokio::test]
async fn connections_wait_while_an_instance_with_an_inherited_socket_starts_again() {
    let config = SupervisorConfig { port: Port::Socket, health: "/health".parse().unwrap(), ..config() };
    let supervisor = children("socket", config).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let before = supervisor.instances().remove(0);
    let proxy = RunningProxy::before(&[before.address.unwrap()]).await;
    assert_eq!(proxy.get("/").await.body(), "app-0");
    kill_process(pid(before.pid.unwrap()), Signal::STOP).unwrap();
    // Nobody accepts it, and then nobody is there at all.
    let waiting = TcpStream::connect(before.address.unwrap()).await.unwrap();
    kill_process(pid(before.pid.unwrap()), Signal::KILL).unwrap();
    let mut waiting = waiting;
    tokio::io::AsyncWriteExt::write_all(&mut waiting, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let head = crate::clients::read_head(&mut waiting).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let after = until(&supervisor, |instances| instances[0].state == InstanceState::Ready).await.remove(0);
    assert_eq!((after.restarts, after.address), (1, before.address));
    // What takes its place has a socket of its own.
    let reload = SupervisorConfig { drain_timeout: Duration::ZERO, port: Port::Socket, ..Default::default() };
    let error = supervisor.reload_with(reload).await.unwrap_err();
    assert!(matches!(error, Error::NoCommand), "{error}");
}

#[tokio::test]
async fn a_socket_that_accepts_before_the_command_does_is_no_sign_of_readiness() {
    let config = SupervisorConfig { port: Port::Socket, command: vec!["true".into()], ..config() };
    assert!(matches!(Supervisor::new(config).start().unwrap_err(), Error::SocketHealth));
}

#[tokio::test]
async fn sockets_of_the_supervisor_are_inherited_by_name() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = SupervisorConfig { health: Health::None, ..config() };
    let supervisor =
        children("socket", config).socket("admin", other).socket("http", listener).start().unwrap();
    assert_eq!(RunningProxy::before(&[address]).await.get("/").await.body(), "app-0");
    supervisor.shutdown().await;
    let missing = SupervisorConfig { command: vec!["no-such-program".into()], ..worker("") };
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Supervisor::new(missing.clone()).socket("http", socket).start().unwrap_err();
    assert!(matches!(error, Error::CommandNotFound { .. }), "{error}");
    let error = Supervisor::new(missing).wrapper(vec!["env".into()]).start().unwrap_err();
    assert!(matches!(error, Error::CommandNotFound { .. }), "{error}");
}

#[tokio::test]
async fn lines_are_kept_and_followed() {
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    let script = format!(
        "echo one; echo two; until [ -e {} ]; do sleep 0.01; done; echo three; sleep 1000",
        gate.display()
    );
    let supervisor = Supervisor::new(worker(&script)).logs(|_| ()).start().unwrap();
    until(&supervisor, |_| supervisor.logs(None, 10).last.len() == 2).await;
    let mut logs = supervisor.logs(Some("app-0"), 1);
    let mut others = supervisor.logs(Some("app-1"), 1);
    assert_eq!((logs.last.len(), logs.last[0].line().text().as_ref(), others.last.len()), (1, "two", 0));
    std::fs::write(&gate, "").unwrap();
    let Some(LogEvent::Line(line)) = tokio::time::timeout(LIMIT, logs.next()).await.unwrap() else {
        panic!()
    };
    assert_eq!((line.line().text().as_ref(), &*line.instance), ("three", "app-0"));
    drop(supervisor);
    assert_eq!(tokio::time::timeout(LIMIT, others.next()).await.unwrap(), None);
}
