use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{self, stream::Stream};
use expect_test::expect;
use greenwave_events::{
    BusConfig, Error, Event,
    jetstream::{JetStream, JetStreamConfig},
};
use greenwave_test_servers::Server;
use serde::{Deserialize, Serialize};

use crate::{
    harness::{Harness, OrderCreated, Running, quick, until, until_done},
    sqlite::OnSqlite,
};

fn config(stream: &str) -> JetStreamConfig {
    let mut config = JetStreamConfig {
        stream: stream.to_owned(),
        subject_prefix: stream.to_owned(),
        source: "/shop".to_owned(),
        ..Default::default()
    };
    config.subscription.retry_max = std::time::Duration::from_millis(200);
    config.ack_timeout = std::time::Duration::from_secs(1);
    config
}

async fn stream(url: &str, name: &str) -> Stream {
    let client = async_nats::connect(url).await.unwrap();
    jetstream::new(client).get_stream(name).await.unwrap()
}

async fn messages(stream: &Stream) -> u64 {
    stream.get_info().await.unwrap().state.messages
}

#[tokio::test]
async fn an_event_is_forwarded_once_as_a_cloud_event() {
    let url = tokio::task::spawn_blocking(greenwave_test_servers::nats_url).await.unwrap();
    let database = OnSqlite::new().await;
    let bus = database.bus();
    let jetstream = JetStream::connect(&url, config("forward")).await.unwrap();
    jetstream.forward(&bus, "to-nats", [OrderCreated::NAME]).unwrap();
    let running = Running::start(&bus);
    bus.register().await.unwrap();

    database
        .execute(
            "INSERT INTO greenwave_event_outbox (id, event, version, payload, created_at)
             VALUES ('01890000-0000-7000-8000-000000000001', 'order-created', 1, '{\"order_id\":4}', 1e12)",
        )
        .await;
    until_done(&bus).await;
    let stream = stream(&url, "forward").await;
    let message = stream.get_last_raw_message_by_subject("forward.order-created").await.unwrap();
    expect![[r#"
        Content-Type: application/cloudevents+json; charset=UTF-8
        Nats-Msg-Id: 01890000-0000-7000-8000-000000000001
        {"specversion":"1.0","id":"01890000-0000-7000-8000-000000000001","source":"/shop","type":"order-created","time":"2001-09-09T01:46:40.000Z","datacontenttype":"application/json","eventversion":1,"data":{"order_id":4}}"#]]
    .assert_eq(&format!(
        "Content-Type: {}\nNats-Msg-Id: {}\n{}",
        message.headers.get("Content-Type").unwrap(),
        message.headers.get("Nats-Msg-Id").unwrap(),
        std::str::from_utf8(&message.payload).unwrap()
    ));

    // The same event again, as after a lost acknowledgement: the server keeps one.
    database
        .execute(
            "INSERT INTO greenwave_event_outbox (id, event, version, payload)
             VALUES ('01890000-0000-7000-8000-000000000001', 'order-created', 1, '{\"order_id\":4}')",
        )
        .await;
    until_done(&bus).await;
    assert_eq!(messages(&stream).await, 1);
    running.stop().await;
}

#[tokio::test]
async fn events_wait_while_the_server_is_down() {
    let mut server = tokio::task::spawn_blocking(Server::nats).await.unwrap();
    let url = server.url();
    let database = OnSqlite::new().await;
    let bus = database.bus();
    let jetstream = JetStream::connect(&url, config("outage")).await.unwrap();
    jetstream.forward(&bus, "to-nats", [OrderCreated::NAME]).unwrap();
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..10).await;
    until_done(&bus).await;

    server = tokio::task::spawn_blocking(move || {
        server.kill();
        server
    })
    .await
    .unwrap();
    database.publish_orders(10..30).await;
    until("the forwarder has taken them", || async {
        database.count("SELECT count(*) FROM greenwave_event_range").await > 0
    })
    .await;
    assert_eq!(bus.backlog().await.unwrap().deliveries, 20);
    // An outage moves nothing: what is under way waits, and the rest stays in the log.
    assert_eq!(database.count("SELECT count(*) FROM greenwave_event_delivery").await, 0);
    let _server = tokio::task::spawn_blocking(move || {
        server.start();
        server
    })
    .await
    .unwrap();
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(messages(&stream(&url, "outage").await).await, 30);
    assert_eq!(bus.backlog().await.unwrap().dead, 0);
}

/// One of a customer's orders.
#[derive(Debug, Deserialize, Serialize)]
struct Ordered {
    customer: u64,
    number: u64,
}

impl Event for Ordered {
    const NAME: &'static str = "ordered";

    fn key(&self) -> Option<String> {
        Some(self.customer.to_string())
    }
}

/// Kills and starts the server in the middle of it: nothing is lost, nothing is there twice, no key's order is broken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_a_key_holds_when_the_server_is_killed_under_load() {
    const EVENTS: u64 = 3000;
    let mut server = tokio::task::spawn_blocking(Server::nats).await.unwrap();
    let url = server.url();
    let database = OnSqlite::new().await;
    let bus = database.bus();
    let jetstream = JetStream::connect(&url, config("order")).await.unwrap();
    jetstream.forward(&bus, "to-nats", [Ordered::NAME]).unwrap();
    let running = Running::start(&bus);
    bus.register().await.unwrap();

    let mut published = 0;
    for _ in 0..3 {
        for _ in 0..20 {
            let batch: Vec<Ordered> =
                (published..published + 50).map(|n| Ordered { customer: n % 40, number: n / 40 }).collect();
            database.publish(&batch).await;
            published += 50;
        }
        bus.wake();
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.start();
            server
        })
        .await
        .unwrap();
    }
    assert_eq!(published, EVENTS);
    until_done(&bus).await;
    running.stop().await;

    let stream = stream(&url, "order").await;
    let state = stream.get_info().await.unwrap().state;
    let mut next: HashMap<u64, u64> = HashMap::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        let event: Ordered = serde_json::from_value(body["data"].clone()).unwrap();
        assert_eq!(body["partitionkey"], event.customer.to_string());
        let next = next.entry(event.customer).or_default();
        assert_eq!(event.number, *next, "customer {}", event.customer);
        *next += 1;
    }
    assert_eq!(next.values().sum::<u64>(), EVENTS);
}

/// Events without a key, one at a time: neither a server nor a process that is killed changes their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_events_keep_their_order_when_one_goes_at_a_time() {
    let mut server = tokio::task::spawn_blocking(Server::nats).await.unwrap();
    let url = server.url();
    let database = OnSqlite::new().await;
    let mut one_at_a_time = config("total");
    one_at_a_time.subscription.concurrency = 1;
    let start = async || {
        let bus = database.bus();
        let bus = bus.with_config(BusConfig { lease: Duration::from_millis(500), ..quick() });
        let jetstream = JetStream::connect(&url, one_at_a_time.clone()).await.unwrap();
        jetstream.forward(&bus, "to-nats", [OrderCreated::NAME]).unwrap();
        bus.register().await.unwrap();
        (Running::start(&bus), bus)
    };
    let (mut running, mut bus) = start().await;
    for round in 0..3 {
        for batch in 0..5 {
            let first = round * 250 + batch * 50;
            database.publish_orders(first..first + 50).await;
        }
        bus.wake();
        until("some are sent", || async { bus.backlog().await.unwrap().deliveries < 200 }).await;
        running.task.abort();
        let _ = running.task.await;
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.start();
            server
        })
        .await
        .unwrap();
        (running, bus) = start().await;
    }
    until_done(&bus).await;
    running.stop().await;

    let stream = stream(&url, "total").await;
    let state = stream.get_info().await.unwrap().state;
    let mut orders = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        orders.push(body["data"]["order_id"].as_i64().unwrap());
    }
    assert_eq!(orders, (0..750).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_name_that_is_no_subject_is_refused() {
    let url = tokio::task::spawn_blocking(greenwave_test_servers::nats_url).await.unwrap();
    let database = OnSqlite::new().await;
    let jetstream = JetStream::connect(&url, config("refused")).await.unwrap();
    let refused = jetstream.forward(&database.bus(), "to-nats", ["order created"]);
    assert!(matches!(refused, Err(Error::JetStream { .. })));
}

#[tokio::test]
async fn an_error_does_not_show_the_password() {
    for url in [
        "http://ada:s3cret@nats.example:4222",
        "nats://ada:s3@cret@nats.example:port",
        "ada:s3cret@nats.example:port",
    ] {
        let refused = JetStream::connect(url, config("refused")).await.err().unwrap();
        let shown = format!("{refused} {refused:?}");
        assert!(shown.contains("nats.example") && !shown.contains("cret"), "{shown}");
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let endless = JetStreamConfig { ack_timeout: std::time::Duration::MAX, ..config("refused") };
    let refused = JetStream::connect("nats://127.0.0.1:4222", endless).await.err().unwrap();
    assert_eq!(refused.to_string(), "`ack_timeout` must be at most a year");
}
