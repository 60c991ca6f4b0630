//! Never is one client's answer given to another.

use super::{Fields, Rig, local, settle};

/// An answer to a request, and whether another client may get it.
async fn check(cases: &[(Fields, Fields, bool)]) {
    for (request, fields, shared) in cases {
        let rig = Rig::scripted(&[(200, fields, "first"), (200, fields, "second")]);
        local(async {
            rig.get("/", request).await;
            settle().await;
            let got = rig.get("/", &[]).await;
            let expected = if *shared { "first" } else { "second" };
            assert_eq!(got.body, expected, "{request:?} {fields:?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_private_is_not_shared() {
    let authorized: Fields = &[("authorization", "Bearer x")];
    check(&[
        (&[], &[("cache-control", "max-age=60")], true),
        (&[], &[("cache-control", "private, max-age=60")], false),
        (&[], &[("cache-control", "no-store, max-age=60")], false),
        (&[], &[("cache-control", "PRIVATE, max-age=60, public")], false),
        (&[], &[("set-cookie", "session=1"), ("cache-control", "max-age=60")], false),
        (&[], &[("set-cookie", "session=1"), ("expires", "Fri, 01 Jan 2100 00:00:00 GMT")], false),
        (&[], &[("set-cookie", "session=1"), ("cache-control", "public, max-age=60")], false),
        (&[], &[("set-cookie", "session=1"), ("cdn-cache-control", "max-age=60")], false),
        (&[], &[("vary", "x-real-ip"), ("cache-control", "max-age=60")], false),
        (&[], &[("cache-control", "max-age=60, private=\"\"")], false),
        (&[], &[("cache-control", "max-age=60, private=\"a b\"")], false),
        (&[("connection", "close, x")], &[("cache-control", "max-age=60")], false),
        (&[("connection", "Keep-Alive, TE")], &[("cache-control", "max-age=60")], true),
        (authorized, &[("cache-control", "max-age=60")], false),
        (authorized, &[("cache-control", "max-age=60, must-revalidate")], true),
        (authorized, &[("cache-control", "s-maxage=60")], true),
        (&[], &[("vary", "*"), ("cache-control", "max-age=60")], false),
        (&[("cache-control", "no-store")], &[("cache-control", "max-age=60")], false),
        (&[], &[("etag", "\"a\"")], false),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_field_that_is_private_is_not_shared() {
    let fields: Fields =
        &[("cache-control", "max-age=60, private=\"set-cookie\""), ("set-cookie", "session=1")];
    let rig = Rig::scripted(&[(200, fields, "")]);
    local(async {
        rig.get("/", &[]).await;
        let got = rig.get("/", &[]).await;
        assert_eq!((got.field("set-cookie"), got.said()), ("", "hit; ttl=60"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_has_to_be_validated_is_not_given_to_who_waits() {
    let fields: Fields = &[("cache-control", "no-cache"), ("etag", "\"a\"")];
    let rig = Rig::scripted(&[(200, fields, "first"), (200, fields, "second")]).hold();
    local(async {
        let asking: Vec<_> = (0..2)
            .map(|_| {
                let rig = rig.clone();
                tokio::task::spawn_local(async move { rig.get("/", &[]).await.body })
            })
            .collect();
        settle().await;
        rig.release(2);
        let mut bodies = Vec::new();
        for asking in asking {
            bodies.push(asking.await.unwrap());
        }
        assert_eq!(bodies, ["first", "second"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_is_forgotten_when_its_successor_is_private() {
    let rig = Rig::scripted(&[
        (200, &[("cache-control", "max-age=1, stale-if-error=600")], "public"),
        (200, &[("cache-control", "private")], "private"),
        (503, &[], "down"),
    ]);
    local(async {
        rig.get("/", &[]).await;
        super::pass(2).await;
        assert_eq!(rig.get("/", &[]).await.body, "private");
        assert_eq!(rig.get("/", &[]).await.body, "down");
    })
    .await;
}
