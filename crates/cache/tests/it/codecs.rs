use std::{error::Error, sync::Arc};

use greenwave_cache::{Cache, CacheConfig, Codec, MessagePack, RemoteConfig};
use greenwave_test_servers::Server;
use redis::{AsyncTypedCommands, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    remote::{User, ada, patient, users},
    support::{Failed, Recording, Source, admin as redis},
};

type Boxed = Box<dyn Error + Send + Sync>;

fn coded<V: Send + Sync + 'static>(url: &str, codec: impl Codec<V>) -> Cache<u64, V> {
    let config = CacheConfig { ttl: std::time::Duration::ZERO, ..Default::default() };
    Cache::builder("v").config(config).remote_with(patient(url), u64::to_string, codec).build()
}

async fn bytes(redis: &mut MultiplexedConnection, key: &str) -> Vec<u8> {
    redis::cmd("GET").arg(key).query_async(redis).await.unwrap()
}

#[tokio::test]
async fn what_does_not_decode_is_a_miss_and_replaced() {
    let server = Server::redis();
    let url = server.url();
    let mut redis = redis(&url).await;
    users(&url).insert(2, ada()).await;
    let another_keys = bytes(&mut redis, "user:2").await;
    let bare = rmp_serde::to_vec_named(&ada()).unwrap();
    for garbage in [b"garbage", &bare[..], &another_keys, b"", b"\xc1garbage that begins as a lease does"] {
        redis.set("user:1", garbage).await.unwrap();
        let recording = Recording::default();
        let cache = recording.of(|| users(&url));
        assert_eq!(cache.get(&1).await, None);
        let source = Source::default();
        let loaded = cache.get_or_load(&1, || source.clone().load(ada())).await;
        assert_eq!(loaded.unwrap().as_deref(), Some(&ada()));
        assert_eq!(source.loads(), 1);
        cache.settled().await;
        assert_eq!(recording.count("greenwave.cache.remote.undecodable{cache=user}"), 2, "{garbage:?}");
        assert_eq!(users(&url).get(&1).await.as_deref(), Some(&ada()), "it was replaced");
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Newer {
    email: Option<String>,
    #[serde(default)]
    logins: u64,
    name: String,
    id: u64,
}

#[tokio::test]
async fn a_struct_may_change_while_old_values_are_about() {
    let server = Server::redis();
    let url = server.url();
    let old = coded::<User>(&url, MessagePack);
    let new = coded::<Newer>(&url, MessagePack);
    old.insert(1, ada()).await;
    let newer = Newer { email: None, logins: 0, name: "Ada".into(), id: 1 };
    assert_eq!(new.get(&1).await.as_deref(), Some(&newer));
    new.insert(1, newer).await;
    assert_eq!(old.get(&1).await.as_deref(), Some(&ada()));
}

#[tokio::test]
async fn a_long_value_is_compressed_and_a_short_one_is_not() {
    let server = Server::redis();
    let url = server.url();
    let mut redis = redis(&url).await;
    let config = RemoteConfig { compress_above: 100, ..Default::default() };
    let remote = greenwave_cache::Remote::connect_with(&url, config).unwrap();
    let cache = Cache::<u64, String>::builder("v").remote(remote).build();
    for (key, length) in [(1, 90), (2, 10_000)] {
        cache.insert(key, "x".repeat(length)).await;
    }
    assert!(bytes(&mut redis, "v:1").await.ends_with(b"xxxxxxxxxx"));
    assert!(bytes(&mut redis, "v:2").await.len() < 300);
    // Another process may compress other sizes.
    assert_eq!(coded::<String>(&url, MessagePack).get(&2).await.unwrap().len(), 10_000);
}

#[tokio::test]
async fn what_is_too_large_is_passed_on_counted_and_not_kept() {
    let server = Server::redis();
    let url = server.url();
    let recording = Recording::default();
    let config = CacheConfig { max_value_bytes: 100, ..Default::default() };
    let cache = recording.of(|| {
        let weigh = |_: &u64, value: &String| value.len() as u64;
        Cache::<u64, String>::builder("v").config(config).weigher(weigh).remote(patient(&url)).build()
    });
    for (key, length) in [(1, 90), (2, 110)] {
        let loaded = cache.get_or_load(&key, || Source::default().load("x".repeat(length))).await;
        assert_eq!(loaded.unwrap().unwrap().len(), length);
        cache.settled().await;
        assert_eq!(redis(&url).await.exists(format!("v:{key}")).await, Ok(length < 100));
    }
    cache.insert(1, "x".repeat(110)).await;
    assert_eq!(redis(&url).await.exists("v:1").await, Ok(false), "nor is the value from before");
    assert_eq!(recording.count("greenwave.cache.remote.too_large{cache=v}"), 2);
}

struct Json;

impl<V: Serialize + DeserializeOwned> Codec<V> for Json {
    fn encode(&self, value: &V) -> Result<Vec<u8>, Boxed> {
        Ok(serde_json::to_vec(value)?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, Boxed> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[tokio::test]
async fn a_codec_may_be_ones_own() {
    let server = Server::redis();
    let url = server.url();
    coded(&url, Json).insert(1, ada()).await;
    let bytes = bytes(&mut redis(&url).await, "v:1").await;
    assert!(bytes.ends_with(br#"{"id":1,"name":"Ada"}"#));
    assert_eq!(coded::<User>(&url, Json).get(&1).await.as_deref(), Some(&ada()));
    assert_eq!(coded::<User>(&url, MessagePack).get(&1).await, None);
}

/// Fails as a codec may, on everything that is not 7.
struct Capricious(u64);

impl Codec<u64> for Capricious {
    fn version(&self) -> u64 {
        self.0
    }

    fn encode(&self, value: &u64) -> Result<Vec<u8>, Boxed> {
        match value {
            0 => panic!("never expected"),
            1 => Err("not this one".into()),
            value => Ok(value.to_string().into_bytes()),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Result<u64, Boxed> {
        assert_eq!(bytes, b"7");
        Ok(7)
    }
}

#[tokio::test]
async fn a_codec_that_fails_or_panics_fails_no_read() {
    let server = Server::redis();
    let url = server.url();
    let recording = Recording::default();
    let cache = recording.of(|| coded(&url, Capricious(0)));
    for (key, is_kept) in [(7, true), (8, false), (0, false), (1, false)] {
        let loaded = cache.get_or_load(&key, || Source::default().load(key)).await;
        assert_eq!(loaded.unwrap().as_deref(), Some(&key));
        cache.settled().await;
        assert_eq!(cache.get(&key).await.is_some(), is_kept, "{key}");
    }
    assert_eq!(recording.count("greenwave.cache.remote.undecodable{cache=v}"), 1);
    assert_eq!(recording.count("greenwave.cache.remote.failures{cache=v,operation=set}"), 2);
    let other_version = coded(&url, Capricious(1));
    assert_eq!(other_version.get(&7).await, None);
}

#[cfg(feature = "postcard")]
mod postcard {
    use greenwave_cache::Postcard;

    use super::*;

    fn postcard<V: Serialize + DeserializeOwned + Send + Sync + 'static>(url: &str) -> Cache<u64, V> {
        coded(url, Postcard::<V>::new().unwrap())
    }

    mod before {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        pub(super) struct Span {
            pub(super) from: u32,
            pub(super) to: u32,
        }
    }

    mod after {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        pub(super) struct Span {
            pub(super) to: u32,
            pub(super) from: u32,
        }
    }

    #[tokio::test]
    async fn postcard_does_not_decode_what_has_another_shape() {
        let server = Server::redis();
        let url = server.url();
        let old = postcard::<before::Span>(&url);
        old.insert(1, before::Span { from: 1, to: 2 }).await;
        assert_eq!(old.get(&1).await.as_deref(), Some(&before::Span { from: 1, to: 2 }));
        let new = postcard::<after::Span>(&url);
        assert_eq!(new.get(&1).await, None, "the fields would be swapped, and nobody would know");
        // It is one entry for all versions: an invalidation reaches it.
        new.invalidate(&1).await;
        assert_eq!(old.get(&1).await, None);
    }

    #[derive(Debug, Serialize, Deserialize)]
    enum Shape {
        Dot,
        Circle(f64),
        Group { name: Option<String>, parts: Vec<Shape> },
    }

    #[test]
    fn shapes_differ_by_whatever_is_written_and_stay_the_same_otherwise() {
        #[derive(Debug, Serialize, Deserialize)]
        enum Reordered {
            Circle(f64),
            Dot,
        }
        let shape = |codec: Result<u64, greenwave_cache::Error>| codec.unwrap();
        fn of<V: Serialize + DeserializeOwned + 'static>() -> Result<u64, greenwave_cache::Error> {
            Postcard::<V>::new().map(|codec| codec.version())
        }
        let shapes = [
            shape(of::<u32>()),
            shape(of::<u64>()),
            shape(of::<String>()),
            shape(of::<Vec<u8>>()),
            shape(of::<Option<u32>>()),
            shape(of::<(u32, u32)>()),
            shape(of::<Shape>()),
            shape(of::<Reordered>()),
            shape(of::<before::Span>()),
            shape(of::<after::Span>()),
        ];
        let different: std::collections::HashSet<_> = shapes.iter().collect();
        assert_eq!(different.len(), shapes.len());
        assert_eq!(shape(of::<Shape>()), shape(of::<Shape>()));
    }

    #[test]
    fn a_type_without_a_shape_to_find_out_is_refused() {
        Postcard::<serde_json::Value>::new().unwrap_err();
        // Written in another way for people than for machines: that of machines is a plain enum.
        Postcard::<std::net::IpAddr>::new().unwrap();
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        struct Email(String);
        impl TryFrom<String> for Email {
            type Error = &'static str;
            fn try_from(text: String) -> Result<Email, &'static str> {
                text.contains('@').then_some(Email(text)).ok_or("no e-mail address")
            }
        }
        let error = Postcard::<Email>::new().unwrap_err();
        assert!(error.to_string().contains("Postcard::of_shape"), "{error}");
        let _ = Postcard::<Email>::of_shape(1);
    }

    #[tokio::test]
    async fn what_postcard_would_read_wrong_is_not_kept() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Skips {
            #[serde(skip_serializing_if = "Option::is_none")]
            first: Option<u8>,
            second: Option<u8>,
        }
        let server = Server::redis();
        let url = server.url();
        let cache = postcard::<Skips>(&url);
        for (key, first) in [(1, Some(1)), (2, None)] {
            cache.insert(key, Skips { first, second: Some(2) }).await;
            let found = cache.get(&key).await;
            assert_eq!(found.as_deref(), first.is_some().then_some(&Skips { first, second: Some(2) }));
        }
    }
}

#[tokio::test]
async fn a_shared_value_needs_no_clone() {
    let server = Server::redis();
    let url = server.url();
    let cache = users(&url);
    let shared = Arc::new(ada());
    let loaded = greenwave_cache::Loaded::value(Arc::clone(&shared));
    let got = cache.get_or_load(&1, || async { Ok::<_, Failed>(loaded) }).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&got, &shared));
}
