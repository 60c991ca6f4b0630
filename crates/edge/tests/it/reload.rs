//! Instances that take the place of others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use expect_test::expect;
use greenwave_edge::{Error, Health, InstanceState, InstanceStatus, Supervisor, SupervisorConfig, Upstreams};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::child::{children, until};
use crate::clients::{LIMIT, RunningProxy};

fn config(instances: usize) -> SupervisorConfig {
    SupervisorConfig {
        instances,
        min_backoff: Duration::from_millis(20),
        drain_timeout: LIMIT,
        ..Default::default()
    }
}

async fn serving(instances: usize) -> Arc<Supervisor> {
    let supervisor = Arc::new(children("serve", config(instances)).start().unwrap());
    supervisor.ready(LIMIT).await.unwrap();
    supervisor
}

/// Releases what drains, as whoever runs an idle proxy does.
fn release(supervisor: &Arc<Supervisor>) -> JoinHandle<()> {
    let (supervisor, mut upstreams) = (Arc::clone(supervisor), supervisor.upstreams());
    tokio::spawn(async move {
        while upstreams.changed().await.is_ok() {
            let list = upstreams.borrow_and_update().clone();
            for upstream in list.iter().filter(|upstream| upstream.draining) {
                supervisor.released(upstream.address);
            }
        }
    })
}

fn usable(upstreams: &watch::Receiver<Upstreams>) -> usize {
    upstreams.borrow().iter().filter(|upstream| upstream.healthy && !upstream.draining).count()
}

fn pids(instances: &[InstanceStatus]) -> Vec<Option<u32>> {
    instances.iter().map(|instance| instance.pid).collect()
}

fn names(instances: &[InstanceStatus]) -> Vec<&str> {
    instances.iter().map(|instance| instance.name.as_str()).collect()
}

#[tokio::test]
async fn a_reload_replaces_every_instance_and_there_are_never_fewer() {
    let supervisor = serving(3).await;
    let _releasing = release(&supervisor);
    let before = supervisor.instances();
    let mut upstreams = supervisor.upstreams();
    let (fewest, most) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicUsize::new(0)));
    let (lowest, highest) = (Arc::clone(&fewest), Arc::clone(&most));
    let watching = tokio::spawn(async move {
        while upstreams.changed().await.is_ok() {
            lowest.fetch_min(usable(&upstreams), Ordering::SeqCst);
            highest.fetch_max(upstreams.borrow_and_update().iter().count(), Ordering::SeqCst);
        }
    });
    supervisor.reload().await.unwrap();
    let after = supervisor.instances();
    assert_eq!(names(&after), ["app-0", "app-1", "app-2"]);
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((new.state, new.restarts), (InstanceState::Ready, 1));
        assert!(new.pid != old.pid && new.address != old.address, "{new:?}");
    }
    assert_eq!((fewest.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (3, 4));
    watching.abort();
    supervisor.shutdown().await;
}

#[tokio::test]
async fn several_instances_are_replaced_at_once_where_that_is_allowed() {
    let supervisor =
        Arc::new(children("serve", SupervisorConfig { max_surge: 3, ..config(3) }).start().unwrap());
    supervisor.ready(LIMIT).await.unwrap();
    let mut upstreams = supervisor.upstreams();
    let reload = tokio::spawn({
        let supervisor = Arc::clone(&supervisor);
        async move { supervisor.reload().await }
    });
    // All three drain at once, since nobody releases one before.
    let all_drain = |list: &Upstreams| list.iter().filter(|upstream| upstream.draining).count() == 3;
    let addresses: Vec<_> = {
        let list = tokio::time::timeout(LIMIT, upstreams.wait_for(all_drain)).await.unwrap().unwrap();
        list.iter().map(|upstream| upstream.address).collect()
    };
    addresses.into_iter().for_each(|address| supervisor.released(address));
    reload.await.unwrap().unwrap();
    assert!(supervisor.instances().iter().all(|instance| instance.restarts == 1));
}

#[tokio::test]
async fn when_the_new_command_does_not_become_ready_the_old_instances_stay() {
    let supervisor = serving(2).await;
    let before = supervisor.instances();
    let script = "echo no database at db:5432 >&2; exit 7";
    let broken = SupervisorConfig { command: ["sh", "-c", script].map(String::from).to_vec(), ..config(2) };
    let error = supervisor.reload_with(broken).await.unwrap_err();
    assert!(matches!(error, Error::Reload { replaced: 0, instances: 2, .. }), "{error:?}");
    expect![[r#"
        app-0 did not become ready; the reload stopped after 0 of 2 instances and kept the others (exit status: 7); its last lines:
            no database at db:5432"#]]
    .assert_eq(&error.to_string());
    let missing = SupervisorConfig { command: vec!["no-such-program".into()], ..config(2) };
    let error = supervisor.reload_with(missing).await.unwrap_err();
    assert!(matches!(error, Error::CommandNotFound { .. }), "{error:?}");
    let silent = SupervisorConfig {
        command: ["sleep", "1000"].map(String::from).to_vec(),
        start_timeout: Duration::from_millis(300),
        ..config(2)
    };
    let error = supervisor.reload_with(silent).await.unwrap_err();
    assert!(error.to_string().contains("it was not ready within 300ms"), "{error}");
    let after = supervisor.instances();
    assert_eq!(pids(&after), pids(&before));
    assert!(after.iter().all(|instance| instance.state == InstanceState::Ready && instance.restarts == 0));
    // What failed is forgotten: the command is still the old one.
    let _releasing = release(&supervisor);
    supervisor.reload().await.unwrap();
}

#[tokio::test]
async fn a_reload_that_fails_midway_keeps_the_rest_and_says_how_far_it_came() {
    let broken = Arc::new(AtomicBool::new(false));
    let breaks = Arc::clone(&broken);
    let supervisor = children("serve", config(3)).env(move |instance| {
        let mode = if instance.index == 1 && breaks.load(Ordering::SeqCst) { "crash" } else { "serve" };
        [("EDGE_TEST_CHILD", mode), ("EDGE_TEST_INSTANCE", instance.name.as_str())]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    });
    let supervisor = Arc::new(supervisor.start().unwrap());
    supervisor.ready(LIMIT).await.unwrap();
    let _releasing = release(&supervisor);
    let before = supervisor.instances();
    broken.store(true, Ordering::SeqCst);
    let error = supervisor.reload().await.unwrap_err();
    let Error::Reload { instance, replaced: 1, instances: 3, last_exit, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((instance.as_str(), last_exit.as_deref()), ("app-1", Some("exit status: 7")));
    let after = supervisor.instances();
    assert_ne!(after[0].pid, before[0].pid);
    assert_eq!(pids(&after[1..]), pids(&before[1..]));
}

#[tokio::test]
async fn an_old_instance_ends_when_it_is_released_and_not_before() {
    let supervisor = serving(1).await;
    let (old, mut upstreams) = (supervisor.instances().remove(0), supervisor.upstreams());
    let address = old.address.unwrap();
    // Before it drains this means nothing.
    supervisor.released(address);
    let reload = tokio::spawn({
        let supervisor = Arc::clone(&supervisor);
        async move { supervisor.reload().await }
    });
    let drains = |list: &Upstreams| list.iter().any(|upstream| upstream.draining);
    tokio::time::timeout(LIMIT, upstreams.wait_for(drains)).await.unwrap().unwrap();
    let both = supervisor.instances();
    assert_eq!(names(&both), ["app-0", "app-0"]);
    assert_eq!([both[0].state, both[1].state], [InstanceState::Draining, InstanceState::Ready]);
    assert_eq!((both[0].pid, usable(&upstreams)), (old.pid, 1));
    // It still serves.
    assert_eq!(RunningProxy::before(&[address]).await.get("/").await.body(), "app-0");
    assert!(!reload.is_finished());
    supervisor.released(address);
    reload.await.unwrap().unwrap();
    assert_eq!(supervisor.instances().len(), 1);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_instance_that_nobody_releases_ends_after_the_drain_timeout() {
    let drain_timeout = Duration::from_millis(200);
    let supervisor = children("serve", SupervisorConfig { drain_timeout, ..config(1) }).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let begun = std::time::Instant::now();
    tokio::time::timeout(LIMIT, supervisor.reload()).await.unwrap().unwrap();
    assert!(begun.elapsed() >= drain_timeout);
}

#[tokio::test]
async fn a_reload_takes_another_command_and_other_variables_and_counts() {
    let supervisor = serving(1).await;
    let _releasing = release(&supervisor);
    let program = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    let command =
        [vec![program], ["--exact", "child::process", "--nocapture", "--quiet"].map(String::from).to_vec()];
    let env = [("VERSION", "2")].into_iter().collect();
    let next = SupervisorConfig { name: "other".into(), command: command.concat(), env, ..config(2) };
    supervisor.reload_with(next).await.unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let instances = supervisor.instances();
    assert_eq!(names(&instances), ["app-0", "app-1"]);
    for instance in instances {
        let proxy = RunningProxy::before(&[instance.address.unwrap()]).await;
        assert_eq!(proxy.get("/version").await.body(), "2");
    }
}

#[tokio::test]
async fn one_instance_is_restarted_alone() {
    let supervisor = serving(2).await;
    let _releasing = release(&supervisor);
    let before = supervisor.instances();
    supervisor.restart("app-1").await.unwrap();
    let after = supervisor.instances();
    assert_eq!(after[0].pid, before[0].pid);
    assert_ne!(after[1].pid, before[1].pid);
    let error = supervisor.restart("app-2").await.unwrap_err();
    assert_eq!(error.to_string(), "no instance is called app-2");
}

#[tokio::test]
async fn instances_are_scaled_up_and_down_from_the_highest_number() {
    let supervisor = serving(1).await;
    let _releasing = release(&supervisor);
    let first = supervisor.instances().remove(0);
    supervisor.scale(3).await.unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    assert_eq!(names(&supervisor.instances()), ["app-0", "app-1", "app-2"]);
    supervisor.scale(2).await.unwrap();
    let two = supervisor.instances();
    assert_eq!((names(&two), two[0].pid), (vec!["app-0", "app-1"], first.pid));
    assert!(matches!(supervisor.scale(0).await, Err(Error::NoInstances)));
    // A reload keeps the number.
    supervisor.reload().await.unwrap();
    assert_eq!(names(&supervisor.instances()), ["app-0", "app-1"]);
}

#[tokio::test]
async fn changes_wait_for_each_other_and_outlive_their_callers() {
    let supervisor = serving(2).await;
    let _releasing = release(&supervisor);
    let (first, second) = tokio::join!(supervisor.reload(), supervisor.reload());
    first.unwrap();
    second.unwrap();
    assert!(supervisor.instances().iter().all(|instance| instance.restarts == 2));
    assert!(tokio::time::timeout(Duration::ZERO, supervisor.reload()).await.is_err());
    until(&supervisor, |instances| {
        instances.len() == 2 && instances.iter().all(|instance| instance.restarts == 3)
    })
    .await;
}

#[tokio::test]
async fn a_stop_ends_a_reload_and_all_that_it_started() {
    let supervisor = serving(2).await;
    let reload = tokio::spawn({
        let supervisor = Arc::clone(&supervisor);
        async move { supervisor.reload().await }
    });
    // Nobody releases it.
    until(&supervisor, |instances| {
        instances.iter().any(|instance| instance.state == InstanceState::Draining)
    })
    .await;
    tokio::time::timeout(LIMIT, supervisor.shutdown()).await.unwrap();
    assert!(matches!(reload.await.unwrap(), Err(Error::Stopped { .. })));
    let ended = supervisor.instances();
    assert!(
        ended.iter().all(|instance| instance.pid.is_none() && instance.state == InstanceState::Stopped),
        "{ended:?}"
    );
    assert!(matches!(supervisor.reload().await, Err(Error::Stopped { .. })));
}

#[tokio::test]
async fn a_crash_looping_command_is_healed_by_a_reload() {
    let supervisor =
        children("crash", SupervisorConfig { crash_loop_after: 2, ..config(1) }).start().unwrap();
    until(&supervisor, |instances| instances[0].crash_looping).await;
    let healed = SupervisorConfig {
        command: ["sleep", "1000"].map(String::from).to_vec(),
        health: Health::None,
        ..config(1)
    };
    supervisor.reload_with(healed).await.unwrap();
    let instance = supervisor.instances().remove(0);
    assert_eq!((instance.state, instance.crash_looping), (InstanceState::Ready, false));
}

#[tokio::test]
async fn an_instance_that_holds_too_much_memory_is_replaced() {
    let mut config = config(2);
    config.max_memory = 60 << 20;
    config.memory_interval = Duration::from_millis(50);
    let supervisor = Arc::new(children("serve", config).start().unwrap());
    supervisor.ready(LIMIT).await.unwrap();
    let _releasing = release(&supervisor);
    let before = supervisor.instances();
    assert!(before.iter().all(|instance| instance.memory_bytes.unwrap() < 60 << 20), "{before:?}");
    RunningProxy::before(&[before[1].address.unwrap()]).await.get("/grow").await;
    let replaced = |instances: &[InstanceStatus]| {
        instances.len() == 2
            && instances[1].pid != before[1].pid
            && instances[1].state == InstanceState::Ready
    };
    let after = until(&supervisor, replaced).await;
    assert_eq!((after[0].pid, after[1].restarts), (before[0].pid, 1));
}
