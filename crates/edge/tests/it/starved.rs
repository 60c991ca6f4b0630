//! A process that has run out of file descriptors. It is one of its own, so that no other test starves with it.

use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;

use greenwave_edge::{CheckConfig, Health, HealthChecker, ProxyConfig, Upstreams};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::clients::{LIMIT, RunningProxy, read_head};
use crate::upstreams::Scripted;

const UPSTREAM: &str = "EDGE_TEST_STARVED_UPSTREAM";

#[tokio::test]
async fn without_file_descriptors_requests_are_refused_and_no_upstream_is_blamed() {
    if let Ok(address) = std::env::var(UPSTREAM) {
        return starve(address.parse().unwrap()).await;
    }
    // It closes each connection, so that each request needs a new one.
    let upstream = Scripted::start("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let name = "starved::without_file_descriptors_requests_are_refused_and_no_upstream_is_blamed";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(UPSTREAM, upstream.address.to_string())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn starve(upstream: SocketAddr) {
    // Nobody checks this list, and its channel stays open: one mark, and the upstream is out for good.
    let (_sender, list) = tokio::sync::watch::channel(Upstreams::fixed([upstream]));
    let config = ProxyConfig { upstream_wait: Duration::from_millis(100), ..Default::default() };
    let proxy = RunningProxy::start(config, list).await;
    let interval = Duration::from_millis(5);
    let config = CheckConfig { interval, unhealthy_after: 1, ..Default::default() };
    let checker = HealthChecker::start([upstream], Health::Tcp, config);
    let mut checked = checker.upstreams();
    checked.wait_for(|list| list.healthy() == 1).await.unwrap();
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    assert!(ask(&mut client).await.starts_with("HTTP/1.1 200 OK"));

    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).unwrap();
    let mut hoard = Vec::new();
    // Connections that were just closed leave descriptors behind: take those too.
    for _ in 0..10 {
        while let Ok(file) = File::open("/dev/null") {
            hoard.push(file);
        }
        let refused = ask(&mut client).await;
        assert!(refused.starts_with("HTTP/1.1 503") || refused.starts_with("HTTP/1.1 200"), "{refused}");
    }
    assert!(ask(&mut client).await.starts_with("HTTP/1.1 503"));
    tokio::time::sleep(20 * interval).await;
    assert_eq!(checked.borrow().healthy(), 1, "checks that were not made changed the verdict");

    drop(hoard);
    assert!(ask(&mut client).await.starts_with("HTTP/1.1 200 OK"), "the upstream was blamed");
}

/// The head of the answer; its body is read away.
async fn ask(client: &mut TcpStream) -> String {
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let head = read_head(client).await;
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    let read = client.read_exact(&mut body);
    tokio::time::timeout(LIMIT, read).await.unwrap().unwrap();
    head
}
