//! Upstreams that fail, that come and go by name, and that are several groups.

use std::time::Duration;

use expect_test::expect;
use greenwave_edge::{
    CheckConfig, Group, Health, HealthChecker, Proxy, ProxyConfig, Route, Target, Upstreams,
};
use http::Request;
use http_body_util::Full;
use tokio_util::sync::CancellationToken;

use crate::clients::{LIMIT, RunningProxy, client, listeners, send};
use crate::upstreams::{OK, Scripted};

const UNAVAILABLE: &str = "HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n";
const NOT_FOUND: &str = "HTTP/1.1 404 Nothing\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn an_upstream_that_answers_503_five_times_in_a_row_gets_nothing_more() {
    let (failing, sound) = (Scripted::start(UNAVAILABLE).await, Scripted::start(OK).await);
    let proxy = RunningProxy::before(&[failing.address, sound.address]).await;
    let mut failures = 0;
    for _ in 0..2000 {
        failures += usize::from(proxy.get("/").await.status() == 503);
        if failures == 5 {
            break;
        }
    }
    assert_eq!(failures, 5);
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    assert_eq!(failing.heads().await.len(), 5);
}

#[tokio::test]
async fn the_only_upstream_is_never_ejected() {
    let failing = Scripted::start(UNAVAILABLE).await;
    let proxy = RunningProxy::before(&[failing.address]).await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status(), 503);
    }
    assert_eq!(failing.heads().await.len(), 20);
}

#[tokio::test]
async fn a_server_is_found_by_its_name_and_checked_under_it() {
    let upstream = Scripted::start(NOT_FOUND).await;
    let target: Target = format!("localhost:{} weight=2", upstream.address.port()).parse().unwrap();
    let config = CheckConfig { expect: "200-299, 404".parse().unwrap(), ..Default::default() };
    let checker = HealthChecker::start([target], "/health".parse::<Health>().unwrap(), config);
    // The name may have other addresses too, where nobody listens.
    let passes = |list: &Upstreams| list.healthy() == 1;
    let mut upstreams = checker.upstreams();
    let list = tokio::time::timeout(LIMIT, upstreams.wait_for(passes)).await.unwrap().unwrap().clone();
    let healthy = list.iter().find(|upstream| upstream.healthy).unwrap();
    assert_eq!((healthy.address, healthy.weight), (upstream.address, 2));
    let host = format!("\r\nhost: localhost:{}\r\n", upstream.address.port());
    assert!(upstream.heads().await[0].contains(&host));
    let proxy = RunningProxy::start(ProxyConfig::default(), checker.upstreams()).await;
    assert_eq!(proxy.get("/").await.status(), 404);
}

#[tokio::test]
async fn a_status_that_is_not_expected_fails_the_check() {
    let upstream = Scripted::start(OK).await;
    let config = CheckConfig {
        expect: "204".parse().unwrap(),
        host: "api.example".into(),
        interval: Duration::from_millis(10),
        ..Default::default()
    };
    let checker = HealthChecker::start([upstream.address], "/health".parse::<Health>().unwrap(), config);
    while upstream.heads().await.len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(checker.upstreams().borrow().healthy(), 0);
    assert!(upstream.heads().await[0].contains("\r\nhost: api.example\r\n"));
}

#[tokio::test]
async fn host_and_path_choose_the_group() {
    let (api, site) = (Scripted::start(NOT_FOUND).await, Scripted::start(OK).await);
    let group = |name, upstream: &Scripted, host: &str, path: &str| {
        let mut group = Group::new(name, Upstreams::fixed([upstream.address]).into_watch());
        group.routes = vec![Route { host: host.into(), path: path.into() }];
        group
    };
    let groups = vec![group("api", &api, "", "/api"), group("site", &site, "*.example.com", "")];
    let proxy = Proxy::with_groups(ProxyConfig::default(), groups).unwrap();
    let listeners = listeners();
    let address = listeners[0].local_addr().unwrap();
    let served = tokio::spawn(proxy.serve(listeners, CancellationToken::new()));
    let get = async |host: &str, path: &str| {
        let request = Request::get(format!("http://{address}{path}")).header("host", host);
        send(&client(), request.body(Full::default()).unwrap()).await.unwrap()
    };
    assert_eq!(get("www.example.com:8080", "/apis").await.status(), 200);
    assert_eq!(get("other", "/api/1?x=/").await.status(), 404);
    assert_eq!((api.heads().await.len(), site.heads().await.len()), (1, 1));
    let nowhere = get("other", "/").await;
    assert_eq!(nowhere.status(), 404);
    expect![[r#"{"error":"not_found","message":"no service is configured for this host and path"}"#]]
        .assert_eq(&String::from_utf8_lossy(nowhere.body()));
    served.abort();
}
