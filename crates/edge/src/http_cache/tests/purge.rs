//! What is purged, or changed by a request, is gone.

use http::Method;
use tokio::task::spawn_local;

use super::{CacheConfig, Fields, Rig, answer, local, settle};

const TAGGED: Fields =
    &[("cache-control", "max-age=60"), ("surrogate-key", "shop product-7"), ("cache-tag", "a,b")];

#[tokio::test(start_paused = true)]
async fn purges_drop_what_they_name_and_nothing_else() {
    type Purge = fn(&crate::HttpCache) -> Option<u64>;
    let cases: &[(Purge, &[&str])] = &[
        (|cache| cache.purge_url("http://a.example/x/1"), &["/x/1"]),
        (|cache| cache.purge_url("https://A.example:443/x/1?q"), &["/x/1?q"]),
        (|cache| cache.purge_url("/x/1"), &[]),
        (|cache| cache.purge_url("http://b.example/x/1"), &[]),
        (|cache| cache.purge_prefix("http://a.example/x/1"), &["/x/1", "/x/1?q"]),
        (|cache| cache.purge_prefix("http://a.example/x"), &["/x/1", "/x/1?q", "/x/2"]),
        (|cache| cache.purge_prefix("http://a.example"), &["/x/1", "/x/1?q", "/x/2", "/y"]),
        (|cache| cache.purge_prefix("http://b.example/"), &[]),
        (|cache| Some(cache.purge_tag("product-7")), &["/x/1", "/x/1?q", "/x/2", "/y"]),
        (|cache| Some(cache.purge_tag("b")), &["/x/1", "/x/1?q", "/x/2", "/y"]),
        (|cache| Some(cache.purge_tag("product")), &[]),
        (|cache| Some(cache.purge_all()), &["/x/1", "/x/1?q", "/x/2", "/y"]),
    ];
    for (number, (purge, expected)) in cases.iter().enumerate() {
        let rig = Rig::scripted(&[(200, TAGGED, "")]);
        local(async {
            let paths = ["/x/1", "/x/1?q", "/x/2", "/y"];
            for path in paths {
                rig.get(path, &[]).await;
            }
            let count = purge(&rig.cache).unwrap_or(0);
            let mut gone = Vec::new();
            for path in paths {
                if !rig.get(path, &[]).await.said().starts_with("hit") {
                    gone.push(path);
                }
            }
            assert_eq!((&gone[..], count), (*expected, expected.len() as u64), "{number}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_wins_over_a_fetch_that_began_before_it() {
    type Purge = fn(&crate::HttpCache);
    let purges: [Purge; 5] = [
        |cache| drop(cache.purge_url("http://a.example/")),
        |cache| drop(cache.purge_prefix("http://a.example/")),
        |cache| drop(cache.purge_tag("product-7")),
        |cache| drop(cache.purge_all()),
        // More than are remembered, so that any of them may be meant.
        |cache| (0..300).for_each(|_| drop(cache.purge_tag("other"))),
    ];
    for (number, purge) in purges.into_iter().enumerate() {
        let rig = Rig::new(CacheConfig::default(), |_, number| {
            Ok(answer(200, TAGGED, if number == 0 { "old" } else { "new" }))
        });
        let rig = rig.hold();
        let ask = || {
            let rig = rig.clone();
            spawn_local(async move { rig.get("/", &[]).await })
        };
        local(async {
            let before = ask();
            settle().await;
            purge(&rig.cache);
            // Whoever comes after it does not even wait for what was asked for before.
            let after = ask();
            settle().await;
            rig.release(2);
            assert_eq!(before.await.unwrap().body, "old", "{number}");
            assert_eq!(after.await.unwrap().body, "new", "{number}");
            settle().await;
            assert_eq!(rig.get("/", &[]).await.body, "new", "{number}");
            assert_eq!(rig.asked(), 2, "{number}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_another_tag_lets_a_fetch_be_kept() {
    let rig = Rig::scripted(&[(200, TAGGED, "")]).hold();
    local(async {
        let asking = {
            let rig = rig.clone();
            spawn_local(async move { rig.get("/", &[]).await })
        };
        settle().await;
        rig.cache.purge_tag("other");
        rig.release(1);
        asking.await.unwrap();
        assert_eq!(rig.get("/", &[]).await.said(), "hit; ttl=60");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_request_drops_what_it_changed_unless_it_failed() {
    const FRESH: Fields = &[("cache-control", "max-age=60")];
    for (method, status, fields, gone) in [
        (Method::POST, 200, &[][..], &["/x/1"][..]),
        (Method::PUT, 303, &[("location", "/x/2")], &["/x/1", "/x/2"]),
        (Method::DELETE, 204, &[("content-location", "http://A.example/x/2")], &["/x/1", "/x/2"]),
        (Method::PATCH, 201, &[("location", "2")], &["/x/1", "/x/2"]),
        (Method::POST, 200, &[("location", "http://b.example/x/2")], &["/x/1"]),
        (Method::POST, 500, &[("location", "/x/2")], &[]),
        (Method::OPTIONS, 200, &[("location", "/x/2")], &[]),
    ] {
        let rig = Rig::new(CacheConfig::default(), move |head, _| {
            Ok(if head.method == Method::GET { answer(200, FRESH, "") } else { answer(status, fields, "") })
        });
        local(async {
            for path in ["/x/1", "/x/2"] {
                rig.get(path, &[]).await;
            }
            rig.send(method.clone(), "/x/1", &[]).await.unwrap();
            let mut asked_again = Vec::new();
            for path in ["/x/1", "/x/2"] {
                if !rig.get(path, &[]).await.said().starts_with("hit") {
                    asked_again.push(path);
                }
            }
            assert_eq!(asked_again, gone, "{method} {status} {fields:?}");
        })
        .await;
    }
}
