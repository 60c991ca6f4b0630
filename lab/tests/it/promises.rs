use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use greenwave_lab::{Arm, Arms, BoxError, Error, Experiment, Runner, Settings, Setup};
use tokio_util::sync::CancellationToken;

use crate::synthetic::{nap, settings};

/// How the set-up of an experiment ends.
#[derive(Clone, Copy)]
enum SetUp {
    Well,
    WithAnError,
    WithAPanic,
    Never,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<(Vec<&'static str>, Option<PathBuf>)>>);

impl Log {
    fn folder(&self) -> PathBuf {
        self.0.lock().unwrap().1.clone().unwrap()
    }
}

fn experiment(log: &Log, how: SetUp) -> Experiment {
    let log = log.clone();
    Experiment::new("promises", "Promises", "Are they kept?", move |setup: Setup| {
        let log = log.clone();
        async move {
            let folder = setup.temp_dir()?;
            std::fs::write(folder.join("data"), "data")?;
            log.0.lock().unwrap().1 = Some(folder.clone());
            for name in ["first", "second"] {
                let log = log.clone();
                setup.on_end(name, async move {
                    log.0.lock().unwrap().0.push(name);
                    Ok(())
                });
            }
            match how {
                SetUp::Well => Ok(Arms { before: Arm::new("a", nap(10)), after: Arm::new("b", nap(10)) }),
                SetUp::WithAnError => Err("no room".into()),
                SetUp::WithAPanic => panic!("a fault of the experiment"),
                SetUp::Never => std::future::pending::<Result<Arms, BoxError>>().await,
            }
        }
    })
}

async fn outcome(how: SetUp) -> Result<(), Error> {
    let log = Log::default();
    let stop = CancellationToken::new();
    let runner = Runner::new(Settings { rounds: 1, ..settings() }).stop_on(stop.clone());
    let experiment = experiment(&log, how);
    let stop_in_time = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.cancel();
        std::future::pending().await
    };
    let outcome = tokio::select! {
        outcome = runner.run(&experiment) => outcome.map(|_| ()),
        never = stop_in_time => never,
    };
    assert_eq!(log.0.lock().unwrap().0, ["second", "first"]);
    assert!(!log.folder().exists());
    outcome
}

#[tokio::test(start_paused = true)]
async fn what_a_set_up_created_is_removed_after_a_good_run() {
    outcome(SetUp::Well).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_set_up_created_is_removed_after_its_error() {
    let error = outcome(SetUp::WithAnError).await.unwrap_err();
    assert!(matches!(error, Error::SetUp(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_set_up_created_is_removed_after_its_panic() {
    let error = outcome(SetUp::WithAPanic).await.unwrap_err();
    assert_eq!(error.to_string(), "the set-up panicked");
}

#[tokio::test(start_paused = true)]
async fn what_a_set_up_created_is_removed_when_it_is_stopped() {
    let error = outcome(SetUp::Never).await.unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_promise_that_cannot_be_kept_becomes_a_warning_in_the_report() {
    let experiment = Experiment::new("broken", "Broken", "Is it kept?", |setup: Setup| async move {
        setup.on_end("drop the database x", async { Err("the server is gone".into()) });
        setup.on_end("drop the database y", std::future::pending());
        Ok(Arms { before: Arm::new("a", nap(10)), after: Arm::new("b", nap(10)) })
    });
    let report = experiment.run(Settings { rounds: 1, ..settings() }).await.unwrap();
    assert_eq!(
        report.warnings,
        [
            "could not drop the database y: no answer within 30s",
            "could not drop the database x: the server is gone"
        ]
    );
    assert!(report.to_markdown(None).contains("- warning: could not drop the database x"));
}

#[tokio::test(start_paused = true)]
async fn clean_ups_wait_for_shielded_work() {
    let log = Log::default();
    let steps = log.clone();
    let experiment = Experiment::new("shield", "Shield", "Does it wait?", move |setup: Setup| {
        let steps = steps.clone();
        async move {
            let (done, removed) = (steps.clone(), steps);
            setup.on_end("remove it", async move {
                removed.0.lock().unwrap().0.push("removed");
                Ok(())
            });
            let creation = async move {
                tokio::time::sleep(Duration::from_secs(10)).await;
                done.0.lock().unwrap().0.push("created");
                Ok(())
            };
            setup.shield(creation).await?;
            Err("the run was stopped, and yet the set-up goes on".into())
        }
    });
    let stop = CancellationToken::new();
    let runner = Runner::new(settings()).stop_on(stop.clone());
    let (outcome, ()) = tokio::join!(runner.run(&experiment), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
    });
    assert!(matches!(outcome, Err(Error::Stopped)), "{outcome:?}");
    assert_eq!(log.0.lock().unwrap().0, ["created", "removed"]);
}
