use std::sync::{Arc, Mutex};
use std::time::Duration;

use greenwave_lab::{Arm, Arms, Experiment, Runner, Settings, Step};
use tokio_util::sync::CancellationToken;

use crate::synthetic::{nap, naps, settings};

#[tokio::test(start_paused = true)]
async fn rounds_alternate_before_after_before_after() {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = steps.clone();
    let runner = Runner::new(Settings { rounds: 3, ..settings() }).observe(move |step| {
        if let Step::RoundStarted { side, round, .. } = step {
            seen.lock().unwrap().push(format!("{side} {round}"));
        }
    });
    let report = runner.run(&naps(20, 10)).await.unwrap();
    assert_eq!(*steps.lock().unwrap(), ["before 1", "after 1", "before 2", "after 2", "before 3", "after 3"]);
    assert_eq!((report.before.rounds.len(), report.after.rounds.len()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn an_arm_is_prepared_before_each_of_its_rounds() {
    let steps = Arc::new(Mutex::new(String::new()));
    let experiment = {
        let steps = steps.clone();
        Experiment::new("prepared", "Prepared", "When?", move |_| {
            let prepare = |letter| {
                let steps = steps.clone();
                move || {
                    steps.lock().unwrap().push(letter);
                    async { Ok(()) }
                }
            };
            let arms = Arms {
                before: Arm::new("before", nap(10)).prepare(prepare('a')),
                after: Arm::new("after", nap(10)).prepare(prepare('b')),
            };
            async { Ok(arms) }
        })
    };
    experiment.run(Settings { rounds: 3, ..settings() }).await.unwrap();
    assert_eq!(*steps.lock().unwrap(), "ababab");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_run_reports_the_pairs_that_are_complete() {
    let stop = CancellationToken::new();
    let when = stop.clone();
    let runner = Runner::new(settings()).stop_on(stop).observe(move |step| {
        if matches!(step, Step::RoundStarted { side: greenwave_lab::Side::After, round: 3, .. }) {
            when.cancel();
        }
    });
    let report = runner.run(&naps(20, 10)).await.unwrap();
    assert!(report.stopped_early);
    assert_eq!((report.before.rounds.len(), report.after.rounds.len()), (2, 2));
    assert!(report.to_table().contains("2 of 6 rounds each"), "{}", report.to_table());
    for arm in [&report.before, &report.after] {
        let sum: u64 = arm.rounds.iter().map(|round| round.operations).sum();
        assert_eq!(arm.operations, sum, "the totals are of the rounds that are shown");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_stopped_before_its_first_pair_has_no_report() {
    let stop = CancellationToken::new();
    let when = stop.clone();
    let runner = Runner::new(settings()).stop_on(stop);
    let experiment = naps(20, 10);
    let (outcome, ()) = tokio::join!(runner.run(&experiment), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        when.cancel();
    });
    assert!(matches!(outcome, Err(greenwave_lab::Error::Stopped)), "{outcome:?}");
}
