//! When a kept answer is given, and what a client gets of it.

use std::time::Duration;

use http::Method;

use super::{CacheConfig, Fields, Rig, answer, local, pass, settle};
use crate::proxy::answer::Refusal;

const FRESH: Fields = &[("cache-control", "max-age=60"), ("etag", "\"a\"")];

/// Two requests with a time between them, and what the second gets.
struct Case {
    first: Fields,
    after: u64,
    request: Fields,
    /// What the origin says to the second.
    second: (u16, Fields),
    status: u16,
    said: &'static str,
    asked: usize,
}

const CASE: Case = Case {
    first: FRESH,
    after: 0,
    request: &[],
    second: (200, FRESH),
    status: 200,
    said: "hit; ttl=60",
    asked: 1,
};

const EXPIRED: Case = Case { after: 61, said: "fwd=stale; stored; ttl=60", asked: 2, ..CASE };

async fn check(cases: &[Case]) {
    for (number, case) in cases.iter().enumerate() {
        let rig = Rig::scripted(&[(200, case.first, "0123456789"), (case.second.0, case.second.1, "")]);
        local(async {
            assert_eq!(rig.get("/", &[]).await.body, "0123456789");
            pass(case.after).await;
            let got = rig.get("/", case.request).await;
            settle().await;
            assert_eq!(
                (got.status, got.said(), rig.asked()),
                (case.status, case.said, case.asked),
                "{number}"
            );
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_answer_is_given_as_long_as_it_is_fresh() {
    check(&[
        CASE,
        Case { after: 59, said: "hit; ttl=1", ..CASE },
        EXPIRED,
        Case { after: 60, ..EXPIRED },
        Case { first: &[("cache-control", "no-cache"), ("etag", "\"a\"")], after: 0, ..EXPIRED },
        Case {
            first: &[("cache-control", "no-store")],
            after: 0,
            said: "fwd=uri-miss; stored; ttl=60",
            ..EXPIRED
        },
        Case { first: &[("cache-control", "max-age=60"), ("age", "50")], said: "hit; ttl=10", ..CASE },
        Case {
            first: &[("cdn-cache-control", "max-age=9"), ("cache-control", "no-store")],
            said: "hit; ttl=9",
            ..CASE
        },
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_may_want_another_than_what_is_kept() {
    let wanted = Case { after: 10, said: "fwd=request; stored; ttl=60", asked: 2, ..CASE };
    let given = Case { after: 10, said: "hit; ttl=50", ..CASE };
    check(&[
        Case { request: &[("cache-control", "no-cache")], ..wanted },
        Case { request: &[("pragma", "no-cache")], ..wanted },
        Case { request: &[("cache-control", "max-age=9")], ..wanted },
        Case { request: &[("cache-control", "max-age=10")], ..given },
        Case { request: &[("cache-control", "min-fresh=51")], ..wanted },
        Case { request: &[("cache-control", "min-fresh=50")], ..given },
        Case { request: &[("cache-control", "no-store")], said: "fwd=request", ..wanted },
        Case { request: &[("cache-control", "only-if-cached")], ..given },
        Case { request: &[("cache-control", "max-stale=1")], after: 61, said: "hit; ttl=-1", ..CASE },
        Case { request: &[("cache-control", "max-stale=1")], after: 62, ..EXPIRED },
        Case { request: &[("cache-control", "max-stale")], after: 600, said: "hit; ttl=-540", ..CASE },
        Case {
            first: &[("cache-control", "max-age=60, must-revalidate")],
            request: &[("cache-control", "max-stale")],
            ..EXPIRED
        },
        Case { request: &[("cache-control", "only-if-cached")], after: 61, status: 504, said: "", ..CASE },
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn conditions_and_ranges_are_answered_from_what_is_kept() {
    check(&[
        Case { request: &[("if-none-match", "\"a\"")], status: 304, ..CASE },
        Case { request: &[("if-none-match", "\"b\"")], ..CASE },
        Case { request: &[("range", "bytes=0-1")], status: 206, ..CASE },
        Case { request: &[("range", "bytes=10-")], status: 416, ..CASE },
        Case { request: &[("range", "bytes=0-1"), ("if-range", "\"a\"")], status: 206, ..CASE },
        Case { request: &[("range", "bytes=0-1"), ("if-range", "\"b\"")], ..CASE },
        Case { request: &[("range", "bytes=0-1"), ("if-none-match", "\"a\"")], status: 304, ..CASE },
        Case { request: &[("if-match", "\"a\"")], said: "fwd=bypass", asked: 2, ..CASE },
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_given_again_once_its_origin_says_that_it_holds() {
    let confirmed = Case {
        second: (304, &[("cache-control", "max-age=90"), ("etag", "\"a\"")]),
        said: "fwd=stale; fwd-status=304; stored; ttl=90",
        ..EXPIRED
    };
    check(&[
        Case { ..confirmed },
        Case { request: &[("if-none-match", "\"a\"")], status: 304, ..confirmed },
        Case { request: &[("range", "bytes=0-1")], status: 206, ..confirmed },
    ])
    .await;
    let rig = Rig::scripted(&[
        (200, &[("cache-control", "max-age=1"), ("etag", "\"a\""), ("x", "1"), ("y", "1")], "body"),
        (304, &[("cache-control", "max-age=60"), ("x", "2")], ""),
    ]);
    local(async {
        rig.get("/", &[]).await;
        pass(2).await;
        rig.get("/", &[("if-none-match", "\"z\""), ("range", "bytes=0-1")]).await;
        let asked = &rig.seen()[1].headers;
        assert_eq!((&asked["if-none-match"], asked.get("range")), (&"\"a\"".parse().unwrap(), None));
        let got = rig.get("/", &[]).await;
        assert_eq!(
            (got.field("x"), got.field("y"), &got.body[..], got.said()),
            ("2", "1", &b"body"[..], "hit; ttl=60")
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_304_about_another_answer_is_not_believed() {
    let rig = Rig::scripted(&[
        (200, &[("cache-control", "max-age=1"), ("etag", "\"a\"")], "old"),
        (304, &[("etag", "\"b\"")], ""),
        (200, FRESH, "new"),
    ]);
    local(async {
        rig.get("/", &[]).await;
        pass(2).await;
        assert_eq!(rig.get("/", &[]).await.body, "new");
        assert!(!rig.seen()[2].headers.contains_key("if-none-match"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in_while_a_new_one_is_fetched_or_none_is_to_be_had() {
    let swr: Fields = &[("cache-control", "max-age=60, stale-while-revalidate=30")];
    let sie: Fields = &[("cache-control", "max-age=60, stale-if-error=30")];
    check(&[
        Case { first: swr, after: 61, said: "hit; ttl=-1", asked: 2, ..CASE },
        Case { first: swr, after: 91, ..EXPIRED },
        Case { first: sie, after: 61, second: (503, &[]), said: "hit; ttl=-1", asked: 2, ..CASE },
        Case { first: sie, after: 61, second: (404, &[]), status: 404, said: "fwd=stale", asked: 2, ..CASE },
        Case { first: sie, after: 91, second: (503, &[]), status: 503, said: "fwd=stale", asked: 2, ..CASE },
        Case { second: (503, &[]), status: 503, said: "fwd=stale", ..EXPIRED },
    ])
    .await;
    let config = CacheConfig { stale_if_error: Duration::from_secs(30), ..CacheConfig::default() };
    let rig = Rig::new(config, |_, number| match number {
        0 => Ok(answer(200, FRESH, "kept")),
        _ => Err(Refusal::UpstreamFailed),
    });
    local(async {
        rig.get("/", &[]).await;
        pass(61).await;
        assert_eq!(rig.get("/", &[]).await.body, "kept");
        pass(30).await;
        assert_eq!(rig.send(Method::GET, "/", &[]).await.err(), Some(Refusal::UpstreamFailed));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_was_fetched_beside_a_stale_answer_is_given_next() {
    let rig = Rig::scripted(&[
        (200, &[("cache-control", "max-age=1, stale-while-revalidate=9")], "old"),
        (200, FRESH, "new"),
    ]);
    local(async {
        rig.get("/", &[]).await;
        pass(2).await;
        assert_eq!(rig.get("/", &[]).await.body, "old");
        settle().await;
        assert_eq!(rig.get("/", &[]).await.body, "new");
        assert_eq!(rig.asked(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_for_requests_that_agree_in_what_it_varies_by() {
    let rig = Rig::new(CacheConfig::default(), |request, _| {
        let german = request.headers.get("accept-language").is_some_and(|value| value == "de");
        let fields: Fields = &[("cache-control", "max-age=60"), ("vary", "accept-language")];
        Ok(answer(200, fields, if german { "ja" } else { "yes" }))
    });
    local(async {
        for _ in 0..2 {
            assert_eq!(rig.get("/", &[("accept-language", "de")]).await.body, "ja");
            assert_eq!(rig.get("/", &[("accept-language", "en")]).await.body, "yes");
            assert_eq!(rig.get("/", &[]).await.body, "yes");
        }
        assert_eq!(rig.asked(), 3);
        let other = rig.get("/", &[("accept-language", "fr")]).await;
        assert_eq!(other.said(), "fwd=vary-miss; stored; ttl=60");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_head_is_answered_from_what_is_kept_and_tells_of_it() {
    let rig = Rig::scripted(&[
        (200, &[("cache-control", "max-age=1"), ("etag", "\"a\"")], "body"),
        (200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], ""),
        (200, &[("etag", "\"b\"")], ""),
        (200, FRESH, "new"),
    ]);
    let head = async |after| {
        pass(after).await;
        let got = super::Got::read(rig.send(Method::HEAD, "/", &[]).await.unwrap()).await;
        assert!(got.body.is_empty());
        got
    };
    local(async {
        rig.get("/", &[]).await;
        let got = head(0).await;
        assert_eq!((got.said(), got.field("content-length")), ("hit; ttl=1", "4"));
        assert_eq!(head(2).await.said(), "fwd=stale");
        assert_eq!(rig.get("/", &[]).await.said(), "hit; ttl=60");
        assert_eq!(head(61).await.said(), "fwd=stale");
        assert_eq!(rig.get("/", &[]).await.body, "new");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_part_of_what_is_not_kept_is_just_passed_on() {
    let rig =
        Rig::scripted(&[(206, &[("cache-control", "max-age=60"), ("content-range", "bytes 0-1/9")], "01")]);
    local(async {
        for _ in 0..2 {
            let got = rig.get("/", &[("range", "bytes=0-1")]).await;
            assert_eq!((got.status, got.said()), (206, "fwd=partial"));
        }
        assert_eq!(rig.asked(), 2);
        assert_eq!(rig.seen()[0].headers["range"], "bytes=0-1");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn clients_see_the_age_but_neither_tags_nor_what_is_meant_for_the_cache() {
    let fields: Fields = &[
        ("greenwave-cache-control", "max-age=60"),
        ("cache-control", "max-age=5"),
        ("surrogate-key", "x"),
        ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
    ];
    for status in [200, 500] {
        let rig = Rig::scripted(&[(status, fields, "")]);
        local(async {
            let got = rig.get("/", &[]).await;
            for name in ["surrogate-key", "greenwave-cache-control"] {
                assert!(!got.headers.contains_key(name), "{name}");
            }
            assert_eq!(got.field("cache-control"), "max-age=5");
            assert_eq!(got.field("date"), "Thu, 01 Jan 2026 00:00:00 GMT");
        })
        .await;
    }
    let rig = Rig::scripted(&[(200, FRESH, "")]);
    local(async {
        assert!(!rig.get("/", &[]).await.headers.contains_key("age"));
        pass(7).await;
        assert_eq!(rig.get("/", &[]).await.field("age"), "7");
    })
    .await;
}

#[tokio::test]
async fn a_cache_that_is_off_changes_nothing() {
    let config = CacheConfig { max_bytes: 0, ..CacheConfig::default() };
    let rig =
        Rig::configured(config, &[(200, &[("cache-control", "max-age=9"), ("surrogate-key", "x")], "")]);
    local(async {
        for asked in 1..3 {
            let got = rig.get("/", &[]).await;
            assert_eq!((got.field("surrogate-key"), got.said(), rig.asked()), ("x", "", asked));
        }
    })
    .await;
}
