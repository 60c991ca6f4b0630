use std::time::Duration;

use greenwave_lab::{Arm, Arms, BoxError, Call, Error, Experiment, Finding, Lab, Settings, Workload, cli};

use crate::synthetic::{nap, settings};

/// An operation of 10 ms, of which one in `every` fails.
fn failing(every: u64) -> Workload {
    Workload::new(move |call: Call| async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if call.number().is_multiple_of(every) {
            Err::<(), BoxError>("the server said no".into())
        } else {
            Ok(())
        }
    })
}

fn experiment(every: u64) -> Experiment {
    Experiment::new("failing", "Failing", "Does it fail?", move |_| async move {
        Ok(Arms { before: Arm::new("sound", nap(10)), after: Arm::new("failing", failing(every)) })
    })
}

#[tokio::test(start_paused = true)]
async fn too_many_errors_end_the_run_and_refuse_the_verdict() {
    let report = experiment(3).run(settings()).await.unwrap();
    assert_eq!(report.verdict.finding, Finding::Refused);
    let text = report.verdict.to_string();
    assert!(text.starts_with("no verdict: 33."), "{text}");
    assert!(text.contains("of after failed") && text.ends_with("the server said no"), "{text}");
    assert_eq!(report.after.rounds.len(), 1, "a run that cannot have a verdict goes on");
    assert!(report.stopped_early);
}

#[tokio::test(start_paused = true)]
async fn few_errors_are_counted_and_leave_the_verdict() {
    let report = experiment(200).run(settings()).await.unwrap();
    assert_ne!(report.verdict.finding, Finding::Refused, "{}", report.verdict);
    assert!(report.after.errors >= 6, "{report:?}");
    assert_eq!(report.before.errors, 0);
    assert!(!report.stopped_early);
}

#[tokio::test(start_paused = true)]
async fn a_round_without_an_operation_refuses_the_verdict() {
    let experiment = Experiment::new("slow", "Slow", "Is it slow?", |_| async {
        Ok(Arms { before: Arm::new("slow", nap(9_000)), after: Arm::new("quick", nap(10)) })
    });
    let report = experiment.run(settings()).await.unwrap();
    assert_eq!(report.verdict.finding, Finding::Refused);
    assert!(report.verdict.text.contains("longer duration"), "{}", report.verdict);
}

#[tokio::test(start_paused = true)]
async fn operations_that_never_end_are_errors() {
    let experiment = Experiment::new("stuck", "Stuck", "Is it stuck?", |_| async {
        let stuck = Workload::new(|_| async { std::future::pending().await });
        Ok(Arms { before: Arm::new("stuck", stuck), after: Arm::new("quick", nap(10)) })
    });
    let report = experiment.run(settings()).await.unwrap();
    assert_eq!(report.before.errors, 4);
    assert_eq!(report.verdict.finding, Finding::Refused);
    assert!(report.verdict.text.contains("no end within 30s"), "{}", report.verdict);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_operation_ends_the_run_with_an_error() {
    let experiment = Experiment::new("panic", "Panic", "Does it panic?", |_| async {
        let panics = Workload::new(|_| async { panic!("a fault of the experiment") });
        Ok(Arms { before: Arm::new("sound", nap(10)), after: Arm::new("faulty", panics) })
    });
    let error = experiment.run(settings()).await.unwrap_err();
    assert_eq!(error.to_string(), "an operation of `faulty` panicked");
}

#[tokio::test]
async fn settings_that_cannot_be_run_are_refused_in_words() {
    let refused = async |settings: Settings| experiment(2).run(settings).await.unwrap_err().to_string();
    assert_eq!(refused(Settings { rounds: 0, ..settings() }).await, "rounds must be from 1 to 1000");
    assert_eq!(
        refused(Settings { concurrency: 0, ..settings() }).await,
        "concurrency must be from 1 to 100000"
    );
    assert_eq!(
        refused(Settings { duration: Duration::ZERO, ..settings() }).await,
        "the duration of a round must be from 1 ms to 1 day"
    );
    let error = experiment(2).run(Settings { max_error_share: f64::NAN, ..settings() }).await;
    assert!(matches!(error, Err(Error::Settings(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_command_line_ends_with_an_error_when_the_verdict_is_refused() {
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        run: cli::RunArgs,
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let args = Program::parse_from(["lab", "failing", "--rounds", "1", "--format", "json", "--out", out]);
    let error = cli::run_in(&Lab::new().with(experiment(2)), args.run).await.unwrap_err().to_string();
    assert!(error.starts_with("no verdict: "), "{error}");
    let page = std::fs::read_to_string(folder.path().join("failing.md")).unwrap();
    assert!(page.contains("**No verdict: "), "{page}");
}
