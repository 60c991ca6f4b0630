//! How a proxy ends.

use std::time::Duration;

use greenwave_edge::{Error, ProxyConfig, Upstreams};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::clients::{LIMIT, RunningProxy, read_all, read_head};
use crate::upstreams::{OK, Scripted};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

async fn refuses(proxy: &RunningProxy) {
    tokio::time::timeout(LIMIT, async {
        while TcpStream::connect(proxy.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("new connections are still accepted");
}

#[tokio::test]
async fn a_drain_finishes_running_requests_and_refuses_new_connections() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = RunningProxy::before(&[upstream.local_addr().unwrap()]).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    read_head(&mut server).await;
    proxy.cancel.cancel();
    refuses(&proxy).await;
    assert!(!proxy.served.is_finished());
    server.write_all(OK.as_bytes()).await.unwrap();
    let answer = read_all(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    tokio::time::timeout(LIMIT, proxy.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_answers_what_still_arrives_on_an_idle_connection_and_closes_it() {
    let upstream = Scripted::start(OK).await;
    let config = ProxyConfig { drain_idle_timeout: LIMIT, drain_timeout: LIMIT * 4, ..Default::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await;
    let mut used = TcpStream::connect(proxy.address).await.unwrap();
    used.write_all(GET).await.unwrap();
    assert!(!read_head(&mut used).await.contains("connection: close"));
    proxy.cancel.cancel();
    refuses(&proxy).await;
    used.write_all(GET).await.unwrap();
    let rest = read_all(&mut used).await;
    assert!(rest.contains("HTTP/1.1 200 OK\r\n") && rest.contains("connection: close\r\n"), "{rest}");
    tokio::time::timeout(LIMIT, proxy.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_closes_a_connection_that_stays_idle() {
    let upstream = Scripted::start(OK).await;
    let soon = Duration::from_millis(100);
    let config = ProxyConfig { drain_idle_timeout: soon, drain_timeout: LIMIT * 4, ..Default::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await;
    let mut used = TcpStream::connect(proxy.address).await.unwrap();
    let mut unused = TcpStream::connect(proxy.address).await.unwrap();
    used.write_all(GET).await.unwrap();
    assert!(read_head(&mut used).await.starts_with("HTTP/1.1 200 OK"));
    proxy.cancel.cancel();
    assert_eq!(read_all(&mut used).await, "ok");
    assert_eq!(read_all(&mut unused).await, "");
    tokio::time::timeout(LIMIT, proxy.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_made_just_before_the_end_is_served_once() {
    let upstream = Scripted::start(OK).await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let client = std::net::TcpStream::connect(proxy.address).unwrap();
    proxy.cancel.cancel();
    client.set_nonblocking(true).unwrap();
    let mut client = TcpStream::from_std(client).unwrap();
    client.write_all(GET).await.unwrap();
    assert!(read_all(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
    tokio::time::timeout(LIMIT, proxy.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_request_that_outlasts_the_drain_is_cut_and_reported() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = ProxyConfig { drain_timeout: Duration::from_millis(200), ..Default::default() };
    let upstreams = Upstreams::fixed([silent.local_addr().unwrap()]).into_watch();
    let proxy = RunningProxy::start(config, upstreams).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    let (mut server, _) = silent.accept().await.unwrap();
    read_head(&mut server).await;
    proxy.cancel.cancel();
    let error = tokio::time::timeout(LIMIT, proxy.served).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Drain { connections: 1, .. }), "{error}");
    assert_eq!(read_all(&mut client).await, "");
}
