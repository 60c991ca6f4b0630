//! The edge and the instances are replaced under load, and die under load.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    client::{client, get},
    control::{configure, pids, ps, refused, said, up_by},
    keep_alive::KeepAlive,
    program::{Up, is_gone, until},
};

const CONFIG: &str = "[apps.a]\ncommand = SERVER\ninstances = 4\nhealth = \"/\"\n";
const CLIENTS: usize = 64;

fn edge(ps: &Value) -> Pid {
    Pid::from_raw(ps["edge"]["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
}

fn four(folder: &TempDir) -> Up {
    up_by(folder, CONFIG)
}

#[tokio::test]
async fn the_edge_is_replaced_without_a_failed_request() {
    let folder = TempDir::new().unwrap();
    let up = four(&folder);
    let load = KeepAlive::start(&up.service, CLIENTS);
    for _ in 0..5 {
        load.more().await;
        let before = ps(&folder);
        assert_eq!(said(&folder, &["reload", "--edge"]), "reloaded\n");
        let after = ps(&folder);
        assert_ne!(edge(&before), edge(&after));
        assert_eq!(pids(&before, "a"), pids(&after, "a"));
        load.more().await;
        until("the old edge ends", || is_gone(edge(&before))).await;
    }
    load.stop();
}

#[tokio::test]
async fn everything_is_replaced_without_a_failed_request() {
    let folder = TempDir::new().unwrap();
    let up = four(&folder);
    let load = KeepAlive::start(&up.service, CLIENTS);
    for _ in 0..5 {
        load.more().await;
        let before = ps(&folder);
        said(&folder, &["reload"]);
        let after = ps(&folder);
        assert_ne!(edge(&before), edge(&after));
        let old = pids(&before, "a");
        assert!(pids(&after, "a").iter().all(|pid| !old.contains(pid)), "{before}{after}");
        assert_eq!(pids(&after, "a").len(), 4);
    }
    load.more().await;
    load.stop();
}

#[tokio::test]
async fn a_hangup_reloads() {
    let folder = TempDir::new().unwrap();
    let up = four(&folder);
    let before = ps(&folder);
    configure(
        &folder,
        &format!(
            "{CONFIG}[apps.b]\ncommand = SERVER\ninstances = 1\n[[routes]]\nto = \"a\"\n[[routes]]\npath = \"/b\"\nto = \"b\""
        ),
    );
    up.signal(Signal::HUP);
    until("the new app runs", || ps(&folder)["apps"].as_array().unwrap().len() == 2).await;
    until("the edge is another", || edge(&ps(&folder)) != edge(&before)).await;
    let (status, body) = get(&client(), &format!("{}/b", up.service)).await.unwrap();
    let pid: i32 = body.split(' ').next().unwrap().parse().unwrap();
    assert_eq!((status.as_u16(), pids(&ps(&folder), "b")), (200, vec![pid]));
    // And gone again.
    configure(&folder, CONFIG);
    said(&folder, &["reload"]);
    assert_eq!(ps(&folder)["apps"].as_array().unwrap().len(), 1);
    until("what was removed is gone", || is_gone(Pid::from_raw(pid).unwrap())).await;
}

#[tokio::test]
async fn what_does_not_start_leaves_everything_as_it_was() {
    let folder = TempDir::new().unwrap();
    let up = four(&folder);
    let before = ps(&folder);
    let same = |why: &str| {
        let now = ps(&folder);
        assert_eq!((edge(&now), pids(&now, "a")), (edge(&before), pids(&before, "a")), "{why}");
    };
    let load = KeepAlive::start(&up.service, 8);
    configure(&folder, "[apps.a]\ncomand = 1");
    assert!(refused(&folder, &["reload"]).contains("did you mean `apps.a.command`?"));
    same("a config that is wrong");
    configure(&folder, "[apps.a]\ncommand = SERVER\n[edge.proxy]\nmax_head_size = 0");
    let said = refused(&folder, &["reload"]);
    assert!(said.contains("max_head_size"), "{said}");
    same("an edge that does not start");
    configure(
        &folder,
        "[apps.a]\ncommand = [\"sh\", \"-c\", \"echo no license; exit 3\"]\ninstances = 4\nhealth = \"/\"",
    );
    let said = refused(&folder, &["reload", "--app", "a"]);
    assert!(said.contains("no license"), "{said}");
    same("an app that does not start");
    load.more().await;
    load.stop();
}

#[tokio::test]
async fn an_edge_that_is_killed_is_back_within_a_second_and_refuses_nobody() {
    let folder = TempDir::new().unwrap();
    let up = four(&folder);
    let before = ps(&folder);
    // However often: an edge that dies again and again is not left down.
    for _ in 0..6 {
        kill_process(edge(&ps(&folder)), Signal::KILL).unwrap();
        let killed = Instant::now();
        // A connection that is made meanwhile waits.
        let (status, _) = get(&client(), &up.service).await.unwrap();
        assert_eq!(status, 200);
        // A debug build on a busy machine.
        assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    }
    let after = ps(&folder);
    assert_eq!(after["edge"]["restarts"], 6);
    assert_eq!(pids(&before, "a"), pids(&after, "a"));
    assert_eq!(get(&client(), &up.dashboard).await.unwrap().0, 200);
}

#[tokio::test]
async fn an_instance_that_is_killed_costs_no_request() {
    let folder = TempDir::new().unwrap();
    let up = four(&folder);
    let load = KeepAlive::start(&up.service, CLIENTS);
    for _ in 0..5 {
        load.more().await;
        let victim = pids(&ps(&folder), "a")[1];
        kill_process(Pid::from_raw(victim).unwrap(), Signal::KILL).unwrap();
        load.more().await;
        until("it is started again", || pids(&ps(&folder), "a").len() == 4).await;
    }
    load.stop();
}

#[tokio::test]
async fn when_the_supervisor_is_killed_the_edge_ends_too() {
    let folder = TempDir::new().unwrap();
    let up = four(&folder);
    let edge = edge(&ps(&folder));
    up.signal(Signal::KILL);
    until("the edge is gone", || is_gone(edge)).await;
}
