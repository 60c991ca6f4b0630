//! The supervisor and its instances.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use expect_test::expect;
use greenwave_edge::{Error, Health, InstanceState, LogStream, Supervisor, SupervisorConfig};
use rustix::process::{Pid, Signal, kill_process};

use crate::child::{children, until};
use crate::clients::LIMIT;

fn config() -> SupervisorConfig {
    SupervisorConfig { min_backoff: Duration::from_millis(20), ..Default::default() }
}

fn shell(script: &str, config: SupervisorConfig) -> SupervisorConfig {
    SupervisorConfig { command: ["sh", "-c", script].map(String::from).to_vec(), ..config }
}

pub(crate) fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap()).unwrap()
}

/// Whether the process runs; one that has ended and waits to be reaped does not.
fn runs(number: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Waits without letting anything else of this test run: what is to end has been told so already.
fn until_gone(number: u32) {
    let begun = std::time::Instant::now();
    while runs(number) {
        assert!(begun.elapsed() < LIMIT, "process {number} still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn an_instance_that_is_killed_is_started_again() {
    let supervisor = children("serve", config()).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let before = supervisor.instances().remove(0);
    kill_process(pid(before.pid.unwrap()), Signal::KILL).unwrap();
    let again = |instances: &[greenwave_edge::InstanceStatus]| {
        instances[0].restarts == 1 && instances[0].state == InstanceState::Ready
    };
    let after = until(&supervisor, again).await.remove(0);
    assert_eq!((after.name.as_str(), after.crash_looping), ("app-0", false));
    assert_ne!(after.pid, before.pid);
    assert_eq!(after.last_exit.as_deref(), Some("signal: 9 (SIGKILL)"));
    assert!(after.memory_bytes.is_some_and(|bytes| bytes > 100_000));
    supervisor.shutdown().await;
}

// Its number may be another's as soon as it is reaped, while what it left behind may hold its pipes open.
#[tokio::test]
async fn an_instance_that_has_ended_has_no_process_while_its_last_lines_are_awaited() {
    // Ends when the other has left for a session, and so for a group, of its own.
    let script = r#"setsid sleep 3 & until [ "$(cut -d' ' -f6 /proc/$!/stat)" = $! ]; do :; done; exit 7"#;
    let config =
        SupervisorConfig { health: Health::None, min_backoff: LIMIT, max_backoff: LIMIT, ..config() };
    let supervisor = Supervisor::new(shell(script, config)).start().unwrap();
    let ended =
        until(&supervisor, |instances| instances[0].state == InstanceState::Restarting).await.remove(0);
    assert_eq!((ended.pid, ended.last_exit), (None, None));
}

#[tokio::test]
async fn a_command_that_keeps_failing_is_in_a_crash_loop() {
    let config = SupervisorConfig { crash_loop_after: 3, ..config() };
    let supervisor = children("crash", config).logs(|_| ()).start().unwrap();
    let error = supervisor.ready(LIMIT).await.unwrap_err();
    let Error::CrashLoop { instance, last_exit, last_lines } = &error else { panic!("{error}") };
    assert_eq!((instance.as_str(), last_exit.as_deref()), ("app-0", Some("exit status: 7")));
    assert!(last_lines.iter().any(|line| line == "no database at db:5432"), "{last_lines:?}");
    assert!(
        error.to_string().starts_with("app-0 keeps exiting (exit status: 7); its last lines:\n"),
        "{error}"
    );
    assert!(supervisor.instances()[0].crash_looping);
    // The verdict is not the end: it is still tried.
    until(&supervisor, |instances| instances[0].restarts > 3).await;
}

#[tokio::test]
async fn a_run_that_lasts_ends_the_crash_loop() {
    let mark = std::env::temp_dir().join(format!("greenwave-edge-crashes-{}", std::process::id()));
    // Fails until the file is there.
    let script = format!("test -e {} && exec sleep 1000", mark.display());
    let config = SupervisorConfig {
        health: Health::None,
        crash_loop_after: 2,
        stable_after: Duration::from_millis(50),
        ..config()
    };
    let supervisor = Supervisor::new(shell(&script, config)).start().unwrap();
    until(&supervisor, |instances| instances[0].crash_looping).await;
    std::fs::write(&mark, "").unwrap();
    let healed = until(&supervisor, |instances| !instances[0].crash_looping).await;
    std::fs::remove_file(&mark).unwrap();
    assert_eq!(healed[0].state, InstanceState::Ready);
}

#[tokio::test]
async fn an_instance_that_never_listens_is_not_ready_and_is_started_anew() {
    let config = SupervisorConfig {
        start_timeout: Duration::from_millis(1500),
        grace: Duration::from_millis(100),
        ..config()
    };
    let supervisor = children("deaf", config).start().unwrap();
    let error = supervisor.ready(Duration::from_millis(1400)).await.unwrap_err();
    let Error::NotReady { instance, last_lines, .. } = &error else { panic!("{error}") };
    assert_eq!(instance, "app-0");
    assert!(last_lines.iter().any(|line| line == "warming up"), "{last_lines:?}");
    let anew = until(&supervisor, |instances| instances[0].restarts > 0).await;
    assert!(anew[0].last_exit.as_deref().unwrap().contains("not ready within"), "{anew:?}");
}

#[tokio::test]
async fn what_cannot_be_started_is_said_at_once() {
    let start = |command: &[&str], instances| {
        let command = command.iter().map(ToString::to_string).collect();
        Supervisor::new(SupervisorConfig { command, instances, ..config() }).start().unwrap_err().to_string()
    };
    expect!["command not found: no-such-program; check the spelling or give its full path"]
        .assert_eq(&start(&["no-such-program", "serve"], 1));
    expect!["could not start /etc/hostname"].assert_eq(&start(&["/etc/hostname"], 1));
    expect!["no command to supervise; give the program and its arguments"].assert_eq(&start(&[], 1));
    expect!["no instances to start; `instances` must be at least 1"].assert_eq(&start(&["true"], 0));
}

#[tokio::test]
async fn an_instance_that_ignores_sigterm_is_killed_after_its_grace() {
    let grace = Duration::from_millis(300);
    let supervisor = children("stubborn", SupervisorConfig { grace, ..config() }).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let begun = std::time::Instant::now();
    supervisor.shutdown().await;
    assert!(begun.elapsed() >= grace);
    let ended = supervisor.instances().remove(0);
    assert_eq!((ended.state, ended.pid), (InstanceState::Stopped, None));
    assert_eq!(ended.last_exit.as_deref(), Some("signal: 9 (SIGKILL)"));
}

#[tokio::test]
async fn an_instance_that_obeys_sigterm_ends_in_its_own_way() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let supervisor = children("worker", SupervisorConfig { health: Health::None, ..config() })
        .logs(move |line| sink.lock().unwrap().push(line.text().into_owned()))
        .start()
        .unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    while !lines.lock().unwrap().iter().any(|line| line == "to stderr") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    supervisor.shutdown().await;
    assert_eq!(supervisor.instances()[0].last_exit.as_deref(), Some("exit status: 0"));
    assert!(lines.lock().unwrap().iter().any(|line| line == "finished the last job"));
    let error = supervisor.ready(LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
}

#[tokio::test]
async fn lines_come_with_instance_and_stream_and_any_bytes() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let config =
        SupervisorConfig { name: "mail".into(), health: Health::None, max_log_line: 16_384, ..config() };
    let supervisor = children("worker", config)
        .logs(move |line| {
            sink.lock().unwrap().push((line.instance.to_owned(), line.stream, line.bytes.to_vec()));
        })
        .start()
        .unwrap();
    let wrote =
        |stream, bytes: &[u8]| lines.lock().unwrap().contains(&("mail-0".to_owned(), stream, bytes.to_vec()));
    let all = || {
        wrote(LogStream::Stderr, b"to stderr")
            && wrote(LogStream::Stdout, b"raw \xff\x00 bytes")
            // The 40000 bytes come whole, in pieces.
            && wrote(LogStream::Stdout, &[b'x'; 40_000 % 16_384])
            // A worker has no port and is nobody's upstream.
            && wrote(LogStream::Stdout, b"port None")
    };
    until(&supervisor, |_| all()).await;
    assert!(supervisor.upstreams().borrow().iter().next().is_none());
    assert_eq!(lines.lock().unwrap().iter().filter(|(_, _, bytes)| **bytes == [b'x'; 16_384]).count(), 2);
}

#[tokio::test]
async fn a_dropped_supervisor_leaves_no_process() {
    let descendant = Arc::new(Mutex::new(None));
    let sink = Arc::clone(&descendant);
    // A child that ignores SIGTERM and has a child of its own.
    let script = "trap '' TERM; sleep 1000 & echo $!; wait";
    let supervisor = Supervisor::new(shell(script, SupervisorConfig { health: Health::None, ..config() }))
        .logs(move |line| *sink.lock().unwrap() = line.text().parse().ok())
        .start()
        .unwrap();
    let known = |_: &[greenwave_edge::InstanceStatus]| descendant.lock().unwrap().is_some();
    let child = until(&supervisor, known).await[0].pid.unwrap();
    let descendant: u32 = descendant.lock().unwrap().unwrap();
    assert!(runs(child) && runs(descendant));
    drop(supervisor);
    until_gone(child);
    until_gone(descendant);
}

#[tokio::test]
async fn an_orderly_stop_reaches_the_whole_group() {
    let descendant = Arc::new(Mutex::new(None));
    let sink = Arc::clone(&descendant);
    let supervisor = Supervisor::new(shell(
        "sleep 1000 & echo $!; wait",
        SupervisorConfig { health: Health::None, ..config() },
    ))
    .logs(move |line| *sink.lock().unwrap() = line.text().parse().ok())
    .start()
    .unwrap();
    until(&supervisor, |_| descendant.lock().unwrap().is_some()).await;
    let descendant: u32 = descendant.lock().unwrap().unwrap();
    assert!(runs(descendant));
    supervisor.shutdown().await;
    assert!(!runs(descendant));
}

#[tokio::test]
async fn what_a_crashed_instance_leaves_behind_is_ended() {
    let descendants = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&descendants);
    let supervisor = Supervisor::new(shell(
        "sleep 1000 & echo $!; exit 1",
        SupervisorConfig { health: Health::None, ..config() },
    ))
    .logs(move |line| sink.lock().unwrap().extend(line.text().parse::<u32>()))
    .start()
    .unwrap();
    until(&supervisor, |instances| instances[0].restarts > 0).await;
    let left: u32 = descendants.lock().unwrap()[0];
    until_gone(left);
}

#[tokio::test]
async fn a_sick_instance_is_no_healthy_upstream_until_it_passes_again() {
    let mut config = SupervisorConfig { health: "/health".parse().unwrap(), ..config() };
    config.check.interval = Duration::from_millis(50);
    config.check.unhealthy_after = 1;
    let supervisor = children("serve", config).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let mut upstreams = supervisor.upstreams();
    let address = upstreams.borrow().iter().next().unwrap().address;
    let asked = crate::clients::RunningProxy::before(&[address]).await.get("/sick").await;
    assert_eq!(asked.status(), 200);
    let mut becomes = async |healthy| {
        tokio::time::timeout(LIMIT, upstreams.wait_for(|list| list.healthy() == healthy))
            .await
            .unwrap()
            .unwrap();
    };
    becomes(0).await;
    becomes(1).await;
    assert_eq!(supervisor.instances()[0].restarts, 0);
}

#[tokio::test]
async fn a_status_reads_well_as_json() {
    let mut config = SupervisorConfig { health: Health::None, ..config() };
    config.name = "shop".into();
    let supervisor = Supervisor::new(shell("sleep 1000", config)).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    supervisor.shutdown().await;
    let json = serde_json::to_string_pretty(&supervisor.instances()).unwrap();
    expect![[r#"
        [
          {
            "name": "shop-0",
            "pid": null,
            "address": null,
            "state": "stopped",
            "restarts": 0,
            "crash_looping": false,
            "last_exit": "signal: 15 (SIGTERM)",
            "uptime_seconds": null,
            "memory_bytes": null
          }
        ]"#]]
    .assert_eq(&json);
}
