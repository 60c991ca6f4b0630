//! A successor has what its predecessor had.

use std::time::Duration;

use super::{CacheConfig, Fields, HttpCache, Rig, local, pass};

const TAGGED: Fields = &[
    ("cache-control", "max-age=60"),
    ("etag", "\"a\""),
    ("vary", "x"),
    ("surrogate-key", "tag"),
    ("x-name", "value"),
];

async fn exported() -> Vec<u8> {
    let rig = Rig::scripted(&[(200, TAGGED, "body")]);
    local(async {
        for path in ["/1", "/2"] {
            rig.get(path, &[("x", "1")]).await;
        }
        rig.get("/2", &[("x", "2")]).await;
        pass(10).await;
        let mut bytes = Vec::new();
        assert_eq!(rig.cache.export(&mut bytes).unwrap(), 3);
        bytes
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_successor_gives_the_same_answers() {
    let bytes = exported().await;
    let rig = Rig::scripted(&[(200, TAGGED, "new")]);
    local(async {
        assert_eq!(rig.cache.import(&bytes[..]), 3);
        for (path, fields) in [("/1", [("x", "1")]), ("/2", [("x", "1")]), ("/2", [("x", "2")])] {
            let got = rig.get(path, Box::leak(Box::new(fields))).await;
            assert_eq!((&got.body[..], got.field("x-name"), got.field("age")), (&b"body"[..], "value", "10"));
            assert!(["hit; ttl=50", "hit; ttl=49"].contains(&got.said()), "{}", got.said());
        }
        assert_eq!(rig.get("/1", &[("x", "9")]).await.body, "new");
        assert_eq!(rig.cache.purge_tag("tag"), 4);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_is_left_out() {
    let bytes = exported().await;
    let import = |bytes: &[u8]| HttpCache::new(CacheConfig::default()).import(bytes);
    for end in 0..bytes.len() {
        assert!(import(&bytes[..end]) < 3, "cut at {end}");
    }
    let mut kept = [0; 4];
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x55;
        kept[import(&damaged) as usize] += 1;
    }
    // All but the time of writing is checked.
    assert_eq!(kept[3], 8);
    assert_eq!(import(&[0xff; 100_000]), 0);
    assert_eq!(import(b""), 0);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_taken_over_than_there_is_room_for() {
    let bytes = exported().await;
    let config = CacheConfig { max_bytes: 500, fill_wait: Duration::ZERO, ..CacheConfig::default() };
    let cache = HttpCache::new(config);
    cache.import(&bytes[..]);
    assert!(cache.stats().bytes <= 500);
}
