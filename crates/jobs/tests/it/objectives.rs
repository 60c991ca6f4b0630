//! What the worker that observes a queue reports.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use greenwave_jobs::{Backend, BoxError, Job, ObjectiveConfig, Queue, Worker, WorkerConfig, telemetry};
use metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::support::{Fixture, Running, quick, start, within};

/// The gauges of this process, by name and queue.
static GAUGES: LazyLock<Gauges> = LazyLock::new(|| {
    let gauges = Gauges::default();
    metrics::set_global_recorder(gauges.clone()).ok();
    gauges
});

#[derive(Clone, Default)]
struct Gauges(Arc<Mutex<HashMap<(String, String), f64>>>);

struct Cell(Gauges, (String, String));

impl GaugeFn for Cell {
    fn increment(&self, _: f64) {}
    fn decrement(&self, _: f64) {}
    fn set(&self, value: f64) {
        self.0.0.lock().unwrap().insert(self.1.clone(), value);
    }
}

impl Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let queue = key.labels().find(|label| label.key() == "queue").map_or("", |label| label.value());
        Gauge::from_arc(Arc::new(Cell(self.clone(), (key.name().to_owned(), queue.to_owned()))))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

async fn reaches(name: &str, queue: &str, test: impl Fn(f64) -> bool) {
    let key = (name.to_owned(), queue.to_owned());
    let wait = async {
        while !GAUGES.0.lock().unwrap().get(&key).is_some_and(|value| test(*value)) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(wait).await;
}

/// A worker of one place, whose jobs each wait for a permit.
fn worker<J: Job, B: Backend>(queue: Queue<B>, permits: &Arc<Semaphore>) -> Running {
    let objectives = vec![ObjectiveConfig { queue: J::QUEUE.into(), max_wait: Duration::from_millis(300) }];
    let permits = Arc::clone(permits);
    start(Worker::new(queue, WorkerConfig { concurrency: 1, objectives, ..quick() }).handle(
        move |_: J, _| {
            let permits = Arc::clone(&permits);
            async move { permits.acquire().await.map(|permit| permit.forget()).map_err(BoxError::from) }
        },
    ))
}

async fn an_objective_is_missed_met_again_and_handed_over<J: Job + Default, F: Fixture>() {
    LazyLock::force(&GAUGES);
    let (fixture, queue) = F::ready().await;
    queue.push_many(&[J::default(), J::default(), J::default()]).await.unwrap();
    let permits = Arc::new(Semaphore::new(0));
    let first = worker::<J, _>(queue.clone(), &permits);
    // One runs, and two wait longer than they may.
    reaches(telemetry::OBJECTIVE_MISSED, J::QUEUE, |missed| missed == 1.0).await;
    reaches(telemetry::READY, J::QUEUE, |ready| ready > 0.0).await;
    reaches(telemetry::OLDEST_READY, J::QUEUE, |age| age > 0.3).await;
    permits.add_permits(3);
    reaches(telemetry::OBJECTIVE_MISSED, J::QUEUE, |missed| missed == 0.0).await;
    reaches(telemetry::READY, J::QUEUE, |ready| ready == 0.0).await;

    // The second takes over some time after the first is gone.
    let second = worker::<J, _>(fixture.connect(), &permits);
    first.kill().await;
    queue.push_many(&[J::default(), J::default(), J::default()]).await.unwrap();
    reaches(telemetry::OBJECTIVE_MISSED, J::QUEUE, |missed| missed == 1.0).await;
    permits.add_permits(3);
    reaches(telemetry::OBJECTIVE_MISSED, J::QUEUE, |missed| missed == 0.0).await;
    second.stop().await;
}

/// Gauges are a process's own, so that each test has a queue of its own.
macro_rules! on {
    ($test:ident, $feature:literal, $fixture:ident, $job:ident) => {
        #[cfg(feature = $feature)]
        #[derive(Default, Serialize, Deserialize)]
        struct $job;

        #[cfg(feature = $feature)]
        impl Job for $job {
            const NAME: &'static str = "observed";
            const QUEUE: &'static str = concat!("observed-on-", $feature);
        }

        #[cfg(feature = $feature)]
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            an_objective_is_missed_met_again_and_handed_over::<$job, crate::support::$fixture>().await;
        }
    };
}

on!(an_objective_is_missed_and_met_on_postgres, "postgres", PostgresFixture, OnPostgres);
on!(an_objective_is_missed_and_met_on_sqlite, "sqlite", SqliteFixture, OnSqlite);
