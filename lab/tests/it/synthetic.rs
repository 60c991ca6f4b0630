//! Experiments whose answer is known. Their clock is tokio's, paused: it jumps from sleep to sleep, so
//! that a round measures exactly what the operations claim to take.

use std::time::Duration;

use greenwave_lab::{Arm, Arms, BoxError, Call, Experiment, Finding, Settings, Workload};

/// An operation of this many milliseconds.
pub(crate) fn nap(ms: u64) -> Workload {
    Workload::new(move |_| async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        Ok(())
    })
}

/// Two arms that take this many milliseconds.
pub(crate) fn naps(before: u64, after: u64) -> Experiment {
    Experiment::new("naps", "Naps", "Do shorter naps leave time for more?", move |_| async move {
        Ok(Arms { before: Arm::new("long naps", nap(before)), after: Arm::new("short naps", nap(after)) })
    })
    .unit("naps")
}

pub(crate) fn settings() -> Settings {
    Settings {
        rounds: 6,
        warm_up: Duration::from_millis(500),
        duration: Duration::from_secs(2),
        concurrency: 4,
        seed: Some(7),
        ..Settings::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_known_ratio_comes_out() {
    let report = naps(40, 10).run(settings()).await.unwrap();
    let ratio = report.ratios.per_second.unwrap();
    assert!((3.9..4.1).contains(&ratio.median), "{ratio:?}");
    assert!(ratio.low <= ratio.median && ratio.median <= ratio.high, "{ratio:?}");
    // Four tasks, 2 s of 40 ms each; the paused clock rounds up to its next millisecond.
    assert!((180..=204).contains(&report.before.rounds[0].operations), "{:?}", report.before);
    let p50 = report.before.p50_ms.unwrap();
    assert!((39.0..42.5).contains(&p50), "{p50}");
    assert!((0.2..0.3).contains(&report.ratios.p99.unwrap().median));
    assert_eq!(report.verdict.finding, Finding::More);
}

#[tokio::test(start_paused = true)]
async fn arms_that_are_alike_differ_by_no_more_than_noise() {
    let report = naps(10, 10).run(settings()).await.unwrap();
    assert_eq!(report.verdict.finding, Finding::Same);
    assert!(report.verdict.text.starts_with("no difference beyond the noise"), "{}", report.verdict);
}

#[tokio::test(start_paused = true)]
async fn an_after_that_does_less_is_said_to_do_less() {
    let report = naps(10, 20).run(settings()).await.unwrap();
    assert_eq!(report.verdict.finding, Finding::Fewer);
    assert!(report.verdict.text.starts_with("after completes fewer naps"), "{}", report.verdict);
}

#[tokio::test(start_paused = true)]
async fn of_fewer_than_six_pairs_no_difference_is_claimed() {
    for rounds in [1, 5] {
        let report = naps(40, 10).run(Settings { rounds, ..settings() }).await.unwrap();
        assert_eq!(report.verdict.finding, Finding::TooFew);
        let start = "too few pairs of rounds to tell, it takes six: so far, after completes 4.0";
        assert!(report.verdict.text.starts_with(start), "{}", report.verdict);
    }
}

#[tokio::test(start_paused = true)]
async fn the_warm_up_is_not_measured() {
    // The first 400 ms of a round are one operation that takes as long, and fails.
    let experiment = Experiment::new("cold", "Cold", "Does the warm-up count?", |_| async {
        let arm = Arm::new(
            "cold at first",
            Workload::new(|call: Call| async move {
                if call.number() < 4 {
                    tokio::time::sleep(Duration::from_millis(400)).await;
                    return Err::<(), BoxError>("still cold".into());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(())
            }),
        );
        Ok(Arms { before: arm.clone(), after: arm })
    });
    let report = experiment.run(settings()).await.unwrap();
    assert_eq!(report.before.errors, 0);
    assert!(report.before.p99_ms.unwrap() < 20.0);
}

#[test]
fn both_arms_of_a_pair_see_the_same_choices_and_another_seed_gives_others() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let choices = |seed| {
        let (tell, told) = std::sync::mpsc::channel();
        let experiment = Experiment::new("choices", "Choices", "Which?", move |_| {
            let arm = |side: &'static str| {
                let tell = tell.clone();
                let operation = move |mut call: Call| {
                    let _ = tell.send((side, call.number(), call.pick(1..=1_000_000_u64)));
                    async {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        Ok(())
                    }
                };
                Arm::new(side, Workload::new(operation))
            };
            let arms = Arms { before: arm("before"), after: arm("after") };
            async { Ok(arms) }
        });
        let run = experiment.run(Settings { rounds: 1, seed: Some(seed), ..settings() });
        runtime.block_on(run).unwrap();
        drop(experiment);
        let mut all: Vec<_> = told.iter().collect();
        all.sort_unstable_by_key(|(side, number, _)| (*side, *number));
        let of =
            |side| all.iter().filter(move |(known, ..)| *known == side).map(|(_, n, choice)| (*n, *choice));
        (of("before").take(400).collect::<Vec<_>>(), of("after").take(400).collect::<Vec<_>>())
    };
    let (before, after) = choices(1);
    assert_eq!(before.len(), 400);
    assert_eq!(before, after);
    assert_eq!(choices(1).0, before);
    assert_ne!(choices(2).0, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_real_clock_a_tenth_of_the_time_is_far_more_operations() {
    let short = Duration::from_millis(400);
    let settings = Settings { rounds: 2, warm_up: Duration::from_millis(50), duration: short, ..settings() };
    let report = naps(40, 4).run(settings).await.unwrap();
    // Ten times is the truth; a busy machine may cost much of it.
    assert!(report.ratios.per_second.unwrap().median > 2.0, "{report:?}");
    assert!(report.before.cpu_us.is_some(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_that_never_wait_do_not_hold_up_the_end() {
    let experiment = Experiment::new("busy", "Busy", "Does a busy loop end?", |_| async {
        let busy = Workload::new(|_| async {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_micros(20) {}
            Ok(())
        });
        Ok(Arms { before: Arm::new("busy", busy.clone()), after: Arm::new("busy", busy) })
    });
    // Long enough that the clock of the CPU time may come late on a busy machine.
    let duration = Duration::from_millis(600);
    let settings = Settings { rounds: 1, warm_up: duration / 6, duration, concurrency: 50, ..settings() };
    let report =
        tokio::time::timeout(Duration::from_secs(20), experiment.run(settings)).await.unwrap().unwrap();
    assert!(report.before.operations > 0 && report.after.operations > 0, "{report:?}");
    assert!(report.before.cpu_us.unwrap() > 1.0, "{report:?}");
}
