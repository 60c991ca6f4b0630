//! What needs no database, or only the nearest: configuration, names, refusals.

use std::time::Duration;

use expect_test::expect;
use greenwave_jobs::{QueueLimits, Rate, WorkerConfig};
use serde::Serialize;

const README: &str = include_str!("../../README.md");

/// All constants of the module, so that a new one cannot be forgotten.
#[test]
fn the_readme_names_every_signal() {
    let constants = include_str!("../../src/telemetry.rs").split("pub const ").skip(1);
    let names: Vec<&str> = constants.map(|constant| constant.split('"').nth(1).unwrap()).collect();
    assert!(names.contains(&greenwave_jobs::telemetry::ATTEMPT_SPAN) && names.len() >= 11, "{names:?}");
    for name in names {
        assert!(README.contains(&format!("| `{name}` |")), "{name} is missing");
    }
}

fn states_the_defaults_of(config: impl Serialize) {
    let config = serde_json::to_value(config).unwrap();
    for (field, default) in config.as_object().unwrap() {
        let default = default.to_string().replace('"', "").replace("null", "none");
        assert!(README.contains(&format!("| `{field}` | {default} |")), "{field} = {default} is missing");
    }
}

#[test]
fn the_readme_states_every_default() {
    states_the_defaults_of(WorkerConfig::default());
    #[cfg(feature = "nats")]
    {
        states_the_defaults_of(greenwave_jobs::NatsConfig::default());
        states_the_defaults_of(greenwave_jobs::ForwardConfig::default());
    }
}

#[test]
fn the_readme_has_a_row_for_every_limit() {
    let limits = QueueLimits {
        max_running: Some(1),
        max_running_per_key: Some(1),
        max_running_per_job: [("note".to_owned(), 1)].into(),
        rate: Some(Rate { jobs: 1, per: Duration::from_secs(1) }),
        max_waiting: Some(1),
    };
    for (field, _) in serde_json::to_value(limits).unwrap().as_object().unwrap() {
        assert!(README.contains(&format!("| `{field}` |")), "{field} is missing");
    }
}

#[test]
fn a_config_reads_durations_and_refuses_unknown_keys() {
    let config: WorkerConfig = serde_json::from_str(r#"{"lease": "1m 30s"}"#).unwrap();
    assert_eq!(config.lease.as_secs(), 90);
    let error = serde_json::from_str::<WorkerConfig>(r#"{"leese": "1m"}"#).unwrap_err();
    expect!["unknown field `leese`, expected one of `concurrency`, `queues`, `max_batch`, `poll_interval`, `lease`, `attempt_timeout`, `retry_base`, `retry_max`, `max_crashes`, `objectives`, `grace` at line 1 column 8"].assert_eq(&error.to_string());
}

#[cfg(feature = "sqlite")]
mod refusals {
    use std::time::Duration;

    use expect_test::{Expect, expect};
    use greenwave_jobs::{BoxError, Error, ObjectiveConfig, Queue, Sqlite, Worker, WorkerConfig};
    use tokio_util::sync::CancellationToken;

    use crate::support::{Note, note, quick, recorder, start, within};

    async fn check(worker: impl FnOnce(Queue<Sqlite>) -> Worker<Sqlite>, expected: Expect) {
        let queue = Queue::sqlite(":memory:").unwrap();
        let error = worker(queue).run(CancellationToken::new()).await.unwrap_err();
        expected.assert_eq(&error.to_string());
    }

    fn with(config: WorkerConfig) -> impl FnOnce(Queue<Sqlite>) -> Worker<Sqlite> {
        |queue| Worker::new(queue, config).handle(|_: Note, _| async { Ok::<(), BoxError>(()) })
    }

    #[tokio::test]
    async fn a_worker_that_makes_no_sense_is_refused() {
        check(
            with(WorkerConfig { concurrency: 0, ..quick() }),
            expect!["the worker cannot run: `concurrency` must be above zero"],
        )
        .await;
        check(
            with(WorkerConfig { lease: Duration::ZERO, ..quick() }),
            expect!["the worker cannot run: `lease` must be at least 100ms"],
        )
        .await;
        check(
            with(WorkerConfig { concurrency: usize::MAX, ..quick() }),
            expect!["the worker cannot run: `concurrency` must be at most 100000"],
        )
        .await;
        check(
            with(WorkerConfig { max_batch: usize::MAX, ..quick() }),
            expect!["the worker cannot run: `max_batch` must be at most 100000"],
        )
        .await;
        let elsewhere = ObjectiveConfig { queue: "elsewhere".into(), max_wait: Duration::from_secs(1) };
        check(
            with(WorkerConfig { objectives: vec![elsewhere], ..quick() }),
            expect!["the worker cannot run: an objective is for queue `elsewhere`, which no handler serves"],
        )
        .await;
        check(|queue| Worker::new(queue, quick()), expect!["the worker cannot run: it has no handler"]).await;
        check(
            |queue| with(quick())(queue).handle(|_: Note, _| async { Ok::<(), BoxError>(()) }),
            expect!["the worker cannot run: job `note` has two handlers"],
        )
        .await;
    }

    /// Durations that humantime reads, but that clocks cannot add to the present, once were panics.
    #[tokio::test]
    async fn durations_of_more_than_a_year_are_refused_and_a_year_is_not() {
        let names = ["lease", "poll_interval", "attempt_timeout", "retry_base", "retry_max", "grace"];
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::sqlite(folder.path().join("jobs.db")).unwrap();
        queue.migrate().await.unwrap();
        for name in names {
            let config = |duration: &str| {
                let mut json = serde_json::to_value(quick()).unwrap();
                json[name] = duration.into();
                serde_json::from_value::<WorkerConfig>(json).unwrap()
            };
            let refused = with(config("18446744073709551615s"))(queue.clone()).run(CancellationToken::new());
            let error = refused.await.unwrap_err().to_string();
            assert_eq!(error, format!("the worker cannot run: `{name}` must be at most a year"));

            let (worker, mut runs) = recorder(queue.clone(), config("1y"));
            let worker = start(worker);
            queue.push(&note("runs")).await.unwrap();
            within(runs.recv()).await.unwrap();
            worker.stop().await;
        }
    }

    #[test]
    fn eight_may_open_a_new_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = folder.path().join(round.to_string());
            let start = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        start.wait();
                        Queue::sqlite(&path).unwrap();
                    });
                }
            });
        }
    }

    #[tokio::test]
    async fn an_error_shows_its_cause_once() {
        let queue = Queue::sqlite(":memory:").unwrap();
        let error = queue.push(&note("x")).await.unwrap_err();
        assert!(matches!(error, Error::Sqlite(_)));
        expect!["the queue's SQLite database failed"].assert_eq(&error.to_string());
        expect!["no such table: greenwave_jobs_queues"]
            .assert_eq(&std::error::Error::source(&error).unwrap().to_string());
    }
}
