//! One fetch for all who want the same.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use tokio::task::{JoinHandle, spawn_local};

use super::{CacheConfig, Fields, Got, Rig, answer, local, settle, streamed, with_body};
use crate::proxy::answer::Refusal;

const FRESH: Fields = &[("cache-control", "max-age=60")];

fn ask(rig: &Rig, fields: Fields) -> JoinHandle<Result<Got, Refusal>> {
    let rig = rig.clone();
    spawn_local(async move {
        match rig.send(Method::GET, "/", fields).await {
            Ok(response) => Ok(Got::read(response).await),
            Err(refusal) => Err(refusal),
        }
    })
}

async fn all<T>(tasks: Vec<JoinHandle<T>>) -> Vec<T> {
    let mut ended = Vec::new();
    for task in tasks {
        ended.push(task.await.unwrap());
    }
    ended
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_at_once_are_one_to_the_origin() {
    let rig = Rig::scripted(&[(200, FRESH, "body")]).hold();
    local(async {
        let asking: Vec<_> = (0..1_000).map(|_| ask(&rig, &[])).collect();
        settle().await;
        rig.release(1);
        let got = all(asking).await;
        assert!(got.iter().all(|got| got.as_ref().unwrap().body == "body"));
        let collapsed = got.iter().filter(|got| got.as_ref().unwrap().said().contains("collapsed")).count();
        assert_eq!((rig.asked(), collapsed), (1, 999));
        assert_eq!((rig.cache.stats().misses, rig.cache.stats().collapsed), (1, 999));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_neither_ends_the_fetch_nor_repeats_it() {
    let rig = Rig::scripted(&[(200, FRESH, "body")]).hold();
    local(async {
        let leader = ask(&rig, &[]);
        settle().await;
        let follower = ask(&rig, &[]);
        settle().await;
        leader.abort();
        settle().await;
        rig.release(1);
        assert_eq!(follower.await.unwrap().unwrap().body, "body");
        assert_eq!(rig.get("/", &[]).await.said(), "hit; ttl=60");
        assert_eq!(rig.asked(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn followers_read_along_while_the_body_comes() {
    let (parts, body) = streamed();
    let body = Rc::new(RefCell::new(Some(body)));
    let rig = Rig::new(CacheConfig::default(), move |_, _| {
        Ok(with_body(200, FRESH, body.borrow_mut().take().unwrap()))
    });
    local(async {
        let mut first = rig.send(Method::GET, "/", &[]).await.unwrap().into_body();
        parts.send(Ok(Bytes::from_static(b"one "))).unwrap();
        let mut second = rig.send(Method::GET, "/", &[]).await.unwrap().into_body();
        for body in [&mut first, &mut second] {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one ");
        }
        parts.send(Ok(Bytes::from_static(b"two"))).unwrap();
        drop(parts);
        for body in [first, second] {
            assert_eq!(body.collect().await.unwrap().to_bytes(), "two");
        }
        let got = rig.get("/", &[]).await;
        assert_eq!((&got.body[..], got.field("content-length"), rig.asked()), (&b"one two"[..], "7", 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_breaks_off_for_all_and_is_not_kept() {
    let cut: Fields = &[("cache-control", "max-age=60"), ("content-length", "9")];
    for (fields, breaks) in [(FRESH, true), (cut, false)] {
        let (parts, body) = streamed();
        let body = Rc::new(RefCell::new(Some(body)));
        let rig = Rig::new(CacheConfig::default(), move |_, _| {
            Ok(body
                .borrow_mut()
                .take()
                .map_or_else(|| answer(200, FRESH, "whole"), |body| with_body(200, fields, body)))
        });
        local(async {
            let asking = vec![ask(&rig, &[]), ask(&rig, &[])];
            settle().await;
            parts.send(Ok(Bytes::from_static(b"part"))).unwrap();
            settle().await;
            if breaks {
                parts.send(Err(Refusal::UpstreamFailed)).unwrap();
            }
            drop(parts);
            for got in all(asking).await {
                assert!(got.unwrap().broken);
            }
            assert_eq!(rig.get("/", &[]).await.body, "whole");
            assert_eq!(rig.asked(), 2);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_sharing_makes_nobody_wait_for_another() {
    let rig = Rig::scripted(&[(200, &[("cache-control", "private")], "mine")]).hold();
    local(async {
        let asking: Vec<_> = (0..100).map(|_| ask(&rig, &[])).collect();
        settle().await;
        assert_eq!(rig.asked(), 1);
        rig.release(1);
        settle().await;
        // All who waited ask at once, and so does whoever comes after them.
        let later = ask(&rig, &[]);
        settle().await;
        assert_eq!(rig.asked(), 101);
        rig.release(100);
        let got = all(asking.into_iter().chain([later]).collect()).await;
        assert!(got.iter().all(|got| got.as_ref().unwrap().said() == "fwd=uri-miss"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_too_long_asks_alone() {
    let config = CacheConfig { fill_wait: Duration::from_secs(1), ..CacheConfig::default() };
    let rig = Rig::configured(config, &[(200, FRESH, "body")]).hold();
    local(async {
        let _leader = ask(&rig, &[]);
        settle().await;
        let _follower = ask(&rig, &[]);
        settle().await;
        assert_eq!(rig.asked(), 1);
        super::pass(2).await;
        settle().await;
        assert_eq!(rig.asked(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_repeated_one_time_for_all_who_wait() {
    let rig = Rig::new(CacheConfig::default(), |_, _| Err(Refusal::UpstreamFailed)).hold();
    local(async {
        let asking: Vec<_> = (0..10).map(|_| ask(&rig, &[])).collect();
        settle().await;
        rig.release(100);
        assert!(all(asking).await.into_iter().all(|got| got.err() == Some(Refusal::UpstreamFailed)));
        assert_eq!(rig.asked(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_failure_is_not_everybodys() {
    let rig = Rig::new(CacheConfig::default(), |_, number| match number {
        0 => Err(Refusal::UpstreamFailed),
        _ => Ok(answer(200, FRESH, "body")),
    })
    .hold();
    local(async {
        let asking: Vec<_> = (0..10).map(|_| ask(&rig, &[])).collect();
        settle().await;
        rig.release(100);
        let failed = all(asking).await.into_iter().filter(Result::is_err).count();
        assert_eq!((failed, rig.asked()), (1, 2));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_is_bounded_too() {
    let config = CacheConfig { max_bytes: 64 * 1024, ..CacheConfig::default() };
    let (parts, body) = streamed();
    let body = RefCell::new(Some(body));
    let rig = Rig::new(config, move |_, _| Ok(with_body(200, FRESH, body.borrow_mut().take().unwrap())));
    local(async {
        let body = rig.send(Method::GET, "/", &[]).await.unwrap().into_body();
        for _ in 0..100 {
            parts.send(Ok(Bytes::from(vec![0; 16 * 1024]))).unwrap();
        }
        settle().await;
        let held =
            |rig: &Rig| rig.cache.store.as_ref().unwrap().on_way.load(std::sync::atomic::Ordering::Relaxed);
        assert!(held(&rig) <= 300 * 1024, "{} bytes", held(&rig));
        drop(parts);
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 100 * 16 * 1024);
        settle().await;
        assert_eq!((held(&rig), rig.cache.stats().stored), (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn variants_are_fetched_one_time_each() {
    let rig =
        Rig::scripted(&[(200, &[("cache-control", "max-age=60"), ("vary", "accept-encoding")], "")]).hold();
    local(async {
        let mut asking: Vec<_> = (0..10).map(|_| ask(&rig, &[("accept-encoding", "br")])).collect();
        asking.extend((0..10).map(|_| ask(&rig, &[("accept-encoding", "gzip")])));
        settle().await;
        rig.release(100);
        all(asking).await;
        assert_eq!(rig.asked(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_to_keep_is_passed_on_in_the_pace_of_its_readers() {
    let config = CacheConfig { max_object_bytes: 8, ..CacheConfig::default() };
    let (parts, body) = streamed();
    let body = Rc::new(RefCell::new(Some(body)));
    let rig = Rig::new(config, move |_, _| {
        Ok(body
            .borrow_mut()
            .take()
            .map_or_else(|| answer(200, FRESH, "next"), |body| with_body(200, FRESH, body)))
    });
    local(async {
        let first = rig.send(Method::GET, "/", &[]).await.unwrap().into_body();
        let second = rig.send(Method::GET, "/", &[]).await.unwrap().into_body();
        for _ in 0..100 {
            parts.send(Ok(Bytes::from_static(b"12345678"))).unwrap();
        }
        settle().await;
        // Two parts are held, and the rest is left to the origin.
        assert!(!parts.is_closed());
        drop(parts);
        let reading =
            [first, second].map(|body| spawn_local(async move { body.collect().await.unwrap().to_bytes() }));
        for read in reading {
            assert_eq!(read.await.unwrap().len(), 800);
        }
        assert_eq!(rig.get("/", &[]).await.body, "next");
    })
    .await;
}
