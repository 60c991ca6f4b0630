//! The response cache, through two threads of a proxy.

use std::time::Duration;

use greenwave_edge::{CacheConfig, Proxy, ProxyConfig, TrustConfig, Upstreams};
use http::{Method, Request};
use http_body_util::Full;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clients::{RunningProxy, client, listeners, read_all, read_head, send};
use crate::upstreams::Scripted;

const KEPT: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nETag: \"a\"\r\nCache-Tag: shop\r\n\
    Content-Length: 4\r\n\r\nbody";

#[tokio::test]
async fn a_kept_answer_is_given_by_all_threads_and_its_upstream_not_asked() {
    let upstream = Scripted::start(KEPT).await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let first = proxy.get("/").await;
    assert_eq!(first.headers()["cache-status"], "greenwave; fwd=uri-miss; stored; ttl=60");
    assert!(!first.headers().contains_key("cache-tag"));
    // Each on a connection of its own, so that both threads get some.
    for _ in 0..20 {
        let got = proxy.get("/").await;
        assert_eq!((got.status().as_u16(), &got.body()[..]), (200, &b"body"[..]));
        assert!(got.headers()["cache-status"].to_str().unwrap().starts_with("greenwave; hit; ttl="));
        assert!(got.headers().contains_key("age"));
    }
    let uri = format!("http://{}/", proxy.address);
    let conditional = Request::get(&uri).header("if-none-match", "\"a\"").body(Full::default()).unwrap();
    assert_eq!(send(&client(), conditional).await.unwrap().status(), 304);
    let part = Request::get(&uri).header("range", "bytes=1-2").body(Full::default()).unwrap();
    let part = send(&client(), part).await.unwrap();
    assert_eq!((part.status().as_u16(), &part.body()[..]), (206, &b"od"[..]));
    let head = proxy.request(Method::HEAD, "/", "").await;
    assert_eq!((head.headers()["content-length"].as_bytes(), head.body().len()), (&b"4"[..], 0));
    assert_eq!(upstream.heads().await.len(), 1);
    proxy.request(Method::POST, "/", "change").await;
    proxy.get("/").await;
    assert_eq!(upstream.heads().await.len(), 3);
}

#[tokio::test]
async fn a_thousand_clients_at_once_are_one_request_to_the_upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = RunningProxy::before(&[address]).await;
    let mut asking = JoinSet::new();
    let uri = format!("http://{}/", proxy.address);
    for _ in 0..1_000 {
        let request = Request::get(&uri).body(Full::default()).unwrap();
        asking.spawn(async move { send(&client(), request).await.unwrap() });
    }
    let (mut upstream, _) = listener.accept().await.unwrap();
    read_head(&mut upstream).await;
    // Half of the body now and half later: some follow from the beginning, some join in the middle.
    upstream.write_all(&KEPT.as_bytes()[..KEPT.len() - 2]).await.unwrap();
    tokio::task::yield_now().await;
    upstream.write_all(&KEPT.as_bytes()[KEPT.len() - 2..]).await.unwrap();
    while let Some(got) = asking.join_next().await {
        assert_eq!(got.unwrap().body(), "body");
    }
    let again = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    assert!(again.is_err(), "the upstream was asked more than one time");
}

#[tokio::test]
async fn an_upstream_that_dies_half_way_breaks_the_answer_off_and_nothing_is_kept() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = RunningProxy::before(&[address]).await;
    let mut client = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    read_head(&mut upstream).await;
    upstream.write_all(&KEPT.as_bytes()[..KEPT.len() - 2]).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
    drop(upstream);
    assert_eq!(read_all(&mut client).await, "bo");
    let mut client = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    read_head(&mut upstream).await;
    upstream.write_all(KEPT.as_bytes()).await.unwrap();
    assert!(read_all(&mut client).await.ends_with("\r\n\r\nbody"));
}

#[tokio::test]
async fn a_cache_is_purged_and_handed_over_beside_the_proxy() {
    let upstream = Scripted::start(KEPT).await;
    let upstreams = Upstreams::fixed([upstream.address]).into_watch();
    let proxy = Proxy::new(ProxyConfig::default(), upstreams.clone()).unwrap();
    let (cache, cancel, listeners) = (proxy.cache(), CancellationToken::new(), listeners());
    let address = listeners[0].local_addr().unwrap();
    let served = tokio::spawn(proxy.serve(listeners, cancel.clone()));
    let get = async |address| {
        let request = Request::get(format!("http://{address}/")).body(Full::default()).unwrap();
        send(&client(), request).await.unwrap()
    };
    get(address).await;
    get(address).await;
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.stored), (1, 1, 1));
    assert!(stats.bytes > 0);
    assert_eq!(cache.purge_tag("shop"), 1);
    assert_eq!(cache.stats().bytes, 0);
    get(address).await;
    let mut bytes = Vec::new();
    assert_eq!(cache.export(&mut bytes).unwrap(), 1);
    let successor = Proxy::new(ProxyConfig::default(), upstreams).unwrap();
    assert_eq!(successor.cache().import(&bytes[..]), 1);
    assert_eq!(successor.cache().purge_url(&format!("http://{address}/")), Some(1));
    assert_eq!(upstream.heads().await.len(), 2);
    cancel.cancel();
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cache_that_is_off_keeps_nothing() {
    let upstream = Scripted::start(KEPT).await;
    let config =
        ProxyConfig { cache: CacheConfig { max_bytes: 0, ..Default::default() }, ..Default::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await;
    for asked in 1..4 {
        assert!(!proxy.get("/").await.headers().contains_key("cache-status"));
        assert_eq!(upstream.heads().await.len(), asked);
    }
}

#[tokio::test]
async fn what_a_believed_proxy_says_of_a_request_counts() {
    let upstream = Scripted::start(KEPT).await;
    let trust = TrustConfig { proxies: vec!["127.0.0.0/8".parse().unwrap()], ..Default::default() };
    let config = ProxyConfig { trust, ..Default::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await;
    for (fields, asked) in [
        ("X-Forwarded-Proto: http\r\n", 1),
        ("", 1),
        // An answer to http may send its client to https, where it would send it again and again.
        ("X-Forwarded-Proto: https\r\n", 2),
        ("X-Forwarded-Proto: https\r\n", 2),
        ("X-Forwarded-Host: evil.example\r\n", 3),
        ("X-Forwarded-Host: a\r\n", 3),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n");
        let got = proxy.raw(&request).await;
        assert!(got.ends_with("body"), "{got}");
        assert_eq!(upstream.heads().await.len(), asked, "{fields}");
    }
}
