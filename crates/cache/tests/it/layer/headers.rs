//! What headers become, and what they mean to the cache.

use expect_test::expect;

use super::*;

#[tokio::test]
async fn a_response_survives_its_serialisation() {
    let pages = pages();
    let headers = [("content-type", "text/plain"), ("x-odd", "caf\u{e9}"), ("connection", "close")];
    let service =
        layer(&pages).layer(Handler::default().answering(move |_| async move { (headers, "a page") }));
    service.oneshot(get_it()).await.unwrap();
    let page = pages.get(&"/1".to_owned()).await.unwrap();
    assert_eq!((page.status(), page.body().as_ref()), (StatusCode::OK, &b"a page"[..]));
    assert!(!page.headers().contains_key("connection"), "that is the connection's");
    let json = serde_json::to_string(&*page).unwrap();
    assert_eq!(serde_json::from_str::<CachedResponse>(&json).unwrap(), *page);
    let error = serde_json::from_str::<CachedResponse>(&json.replace("200", "7")).unwrap_err();
    expect!["invalid status code"].assert_eq(&error.to_string());
}

#[tokio::test]
async fn a_response_says_its_age() {
    let pages = pages();
    let service = layer(&pages).layer(Handler::default().answering(|_| async { "page" }));
    let fresh = service.clone().oneshot(get_it()).await.unwrap();
    assert!(!fresh.headers().contains_key("age"));
    let mut page = serde_json::to_value(&*pages.get(&"/1".to_owned()).await.unwrap()).unwrap();
    page["at"] = (page["at"].as_u64().unwrap() - 100).into();
    pages.insert("/1".to_owned(), serde_json::from_value::<CachedResponse>(page).unwrap()).await;
    let aged = service.oneshot(get_it()).await.unwrap();
    assert!(
        (100..110).contains(&aged.headers()["age"].to_str().unwrap().parse::<u64>().unwrap()),
        "{aged:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_age_that_a_response_has_when_it_comes_counts() {
    let config = CacheConfig { ttl_jitter: 0.0, ..Default::default() };
    let pages: Pages = Cache::builder("page").config(config).build();
    let handler = Handler::default();
    let aged = [("age", "70"), ("cache-control", "max-age=100")];
    let service =
        layer(&pages).ttl_from_headers().layer(handler.answering(move |_| async move { (aged, "page") }));
    for calls in [1, 1, 2] {
        let response = service.clone().oneshot(get_it()).await.unwrap();
        let age: u64 = response.headers()["age"].to_str().unwrap().parse().unwrap();
        assert!((70..80).contains(&age), "{age}");
        assert_eq!(handler.calls(), calls);
        tokio::time::sleep(Duration::from_secs(16)).await;
    }
}

#[tokio::test]
async fn the_headers_of_a_connection_are_not_kept() {
    let pages = pages();
    let headers =
        [("connection", "x-hop, Keep-Alive"), ("x-hop", "1"), ("proxy-connection", "close"), ("x-end", "1")];
    let service =
        layer(&pages).layer(Handler::default().answering(move |_| async move { (headers, "page") }));
    service.oneshot(get_it()).await.unwrap();
    let page = pages.get(&"/1".to_owned()).await.unwrap();
    let mut kept: Vec<_> = page.headers().keys().map(|name| name.as_str()).collect();
    kept.sort_unstable();
    assert_eq!(kept, ["content-type", "x-end"]);
}

#[tokio::test(start_paused = true)]
async fn a_response_may_set_its_own_ttl() {
    let seconds = Duration::from_secs;
    for (cache_control, fresh_for) in [
        ("max-age=60", 60),
        ("max-age=60, s-maxage=5", 5),
        ("max-age=0", 0),
        ("s-maxage=60, max-age=5", 60),
        ("max-age=60, max-age=5", 5),
        ("max-age=5, max-age=60", 5),
        ("max-age=\"5\"", 5),
        // What can't be read is taken for stale.
        ("max-age=soon", 0),
        ("max-age=+5", 0),
        ("max-age", 0),
        ("s-maxage=soon, max-age=60", 0),
        ("public", 300),
    ] {
        let config = CacheConfig { ttl: seconds(300), ttl_jitter: 0.0, ..Default::default() };
        let pages: Pages = Cache::builder("page").config(config).build();
        let handler = Handler::default();
        let answer = handler.answering(move |_| async move { ([("cache-control", cache_control)], "page") });
        let service = layer(&pages).ttl_from_headers().layer(answer);
        service.clone().oneshot(get_it()).await.unwrap();
        if fresh_for > 0 {
            tokio::time::sleep(seconds(fresh_for) - Duration::from_millis(200)).await;
            service.clone().oneshot(get_it()).await.unwrap();
            assert_eq!(handler.calls(), 1, "{cache_control}");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        service.oneshot(get_it()).await.unwrap();
        assert_eq!(handler.calls(), 2, "{cache_control}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_max_age_beyond_all_numbers_is_a_long_one() {
    let (pages, handler) = (pages(), Handler::default());
    let eternal = [("cache-control", "max-age=99999999999999999999")];
    let answer = handler.answering(move |_| async move { (eternal, "page") });
    let service = layer(&pages).ttl_from_headers().layer(answer);
    service.clone().oneshot(get_it()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(365 * 24 * 60 * 60)).await;
    service.oneshot(get_it()).await.unwrap();
    assert_eq!(handler.calls(), 1);
}
