use chrono::TimeZone;
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// A moment in Zurich, as wall clock and offset.
fn zurich(time: &str) -> i64 {
    DateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S %z").unwrap().timestamp_millis()
}

fn check(pattern: &str, from: &str, count: usize, expected: Expect) {
    let schedule = Schedule::cron(pattern).unwrap().in_time_zone("Europe/Zurich").unwrap();
    let mut at = zurich(from);
    let mut ticks = Vec::new();
    for _ in 0..count {
        at = schedule.after(at).unwrap();
        let tick = chrono_tz::Europe::Zurich.timestamp_millis_opt(at).unwrap();
        ticks.push(tick.format("%a %d.%m. %H:%M:%S %z").to_string());
    }
    expected.assert_eq(&ticks.join(", "));
}

/// In the night of 29 March 2026 the hour from two to three does not exist.
#[test]
fn a_time_of_day_that_is_skipped_ticks_when_the_gap_ends() {
    let before = "2026-03-28 12:00:00 +0100";
    check("30 2 * * *", before, 2, expect!["Sun 29.03. 03:00:00 +0200, Mon 30.03. 02:30:00 +0200"]);
    check("0 2 * * *", before, 2, expect!["Sun 29.03. 03:00:00 +0200, Mon 30.03. 02:00:00 +0200"]);
    check("0 3 * * *", before, 2, expect!["Sun 29.03. 03:00:00 +0200, Mon 30.03. 03:00:00 +0200"]);
}

#[test]
fn other_patterns_pass_the_gap_over() {
    let before = "2026-03-29 01:15:00 +0100";
    check("30 * * * *", before, 2, expect!["Sun 29.03. 01:30:00 +0100, Sun 29.03. 03:30:00 +0200"]);
    check("30 2,14 * * *", before, 2, expect!["Sun 29.03. 14:30:00 +0200, Mon 30.03. 02:30:00 +0200"]);
    check("*/15 30 2 * * *", before, 1, expect!["Mon 30.03. 02:30:00 +0200"]);
}

/// In the night of 25 October 2026 the hour from two to three comes twice.
#[test]
fn a_time_of_day_that_comes_twice_ticks_the_first_time() {
    let before = "2026-10-25 01:00:00 +0200";
    check("30 2 * * *", before, 2, expect!["Sun 25.10. 02:30:00 +0200, Mon 26.10. 02:30:00 +0100"]);
    check("0 3 * * *", before, 2, expect!["Sun 25.10. 03:00:00 +0100, Mon 26.10. 03:00:00 +0100"]);
}

#[test]
fn other_patterns_tick_both_times() {
    let before = "2026-10-25 01:45:00 +0200";
    check(
        "30 * * * *",
        before,
        3,
        expect!["Sun 25.10. 02:30:00 +0200, Sun 25.10. 02:30:00 +0100, Sun 25.10. 03:30:00 +0100"],
    );
    check(
        "30 2,14 * * *",
        before,
        3,
        expect!["Sun 25.10. 02:30:00 +0200, Sun 25.10. 02:30:00 +0100, Sun 25.10. 14:30:00 +0100"],
    );
}

#[test]
fn patterns_are_those_of_cron_and_a_little_more() {
    let before = "2026-06-01 00:00:00 +0200";
    check("*/20 * * * * *", before, 2, expect!["Mon 01.06. 00:00:20 +0200, Mon 01.06. 00:00:40 +0200"]);
    check("@daily", before, 1, expect!["Tue 02.06. 00:00:00 +0200"]);
    check("0 9 * * MON-FRI", before, 1, expect!["Mon 01.06. 09:00:00 +0200"]);
    check("0 0 13 * FRI", before, 2, expect!["Fri 05.06. 00:00:00 +0200, Fri 12.06. 00:00:00 +0200"]);
    check("0 0 13 * +FRI", before, 1, expect!["Fri 13.11. 00:00:00 +0100"]);
    check("0 0 L * *", before, 2, expect!["Tue 30.06. 00:00:00 +0200, Fri 31.07. 00:00:00 +0200"]);
    check("0 0 * * FRI#2", before, 1, expect!["Fri 12.06. 00:00:00 +0200"]);
    check("0 0 15W * *", "2026-08-01 00:00:00 +0200", 1, expect!["Fri 14.08. 00:00:00 +0200"]);
}

#[test]
fn what_makes_no_sense_is_refused_with_its_reason() {
    let refusals = ["0 25 * * *", "", "0 3 * *", "* * * * * * 2030", "0 0 30 2 *", "every day"]
        .map(|pattern| Schedule::cron(pattern).unwrap_err().to_string());
    expect![[r#"
        the cron pattern `0 25 * * *` does not work: Component error: Number out of bounds.
        the cron pattern `` does not work: CronPattern cannot be an empty string.
        the cron pattern `0 3 * *` does not work: Invalid pattern: Pattern must have 5 or 6 fields when years are disallowed.
        the cron pattern `* * * * * * 2030` does not work: Invalid pattern: Pattern must have 5 or 6 fields when years are disallowed.
        the cron pattern `0 0 30 2 *` does not work: there is no such date
        the cron pattern `every day` does not work: Invalid pattern: Pattern must have 5 or 6 fields when years are disallowed."#]].assert_eq(&refusals.join("\n"));
    let zone = Schedule::cron("@daily").unwrap().in_time_zone("Europe/Zuerich").unwrap_err();
    expect!["there is no time zone `Europe/Zuerich`"].assert_eq(&zone.to_string());
    let second = || Schedule::every(Duration::from_secs(1));
    let refused = [
        Schedule::every(Duration::from_millis(999)),
        Schedule::every(Duration::MAX),
        second().missed(Missed::RunAll(0)),
        second().missed(Missed::RunAll(1001)),
        second().with_jitter(Duration::MAX),
    ]
    .map(|schedule| schedule.check().unwrap_err().to_string());
    expect![[r#"
        an interval must be at least a second
        an interval must be at most a year
        of missed ticks 1 to 1000 may run
        of missed ticks 1 to 1000 may run
        the jitter must be at most a day"#]]
    .assert_eq(&refused.join("\n"));
    assert!(second().missed(Missed::RunAll(1000)).check().is_ok());
}

#[test]
fn a_year_of_missed_seconds_is_found_at_once() {
    let every_second = Schedule::cron("* * * * * *").unwrap().missed(Missed::RunAll(3));
    let (from, now) = (zurich("2025-01-01 00:00:00 +0000"), zurich("2026-01-01 00:00:00 +0000"));
    let began = std::time::Instant::now();
    let (ticks, next) = every_second.due(from, now).unwrap();
    assert_eq!((ticks, next), (vec![now - 2000, now - 1000, now], now + 1000));
    assert!(began.elapsed() < Duration::from_secs(2));
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let patterns =
        ["*/7 * * * *", "30 2 * * *", "0 */5 * * *", "15 3,2 * * SUN", "0 0 1 * *", "30 * 20-30 10 *"];
    let cron = (prop::sample::select(patterns.to_vec()), prop::sample::select(vec!["UTC", "Europe/Zurich"]))
        .prop_map(|(pattern, zone)| Schedule::cron(pattern).unwrap().in_time_zone(zone).unwrap());
    prop_oneof![cron, (1u64..100_000).prop_map(|seconds| Schedule::every(Duration::from_secs(seconds)))]
}

proptest! {
    /// Whoever was away for however long finds the last ticks that one who never was has seen.
    #[test]
    fn the_ticks_that_are_due_are_the_last_of_all(
        schedule in schedules(), start in 1_770_000_000i64..1_800_000_000, away in 0i64..20_000_000, max in 1u32..20,
    ) {
        let schedule = schedule.missed(Missed::RunAll(max));
        let first = schedule.after(start * 1000).unwrap();
        let now = first + away;
        let mut all = vec![first];
        while *all.last().unwrap() <= now {
            all.push(schedule.due(*all.last().unwrap(), *all.last().unwrap()).unwrap().1);
        }
        let next = all.pop().unwrap();
        let last = all.split_off(all.len().saturating_sub(max as usize));
        prop_assert_eq!(schedule.due(first, now).unwrap(), (last, next));
    }

    #[test]
    fn a_schedule_survives_its_json(schedule in schedules(), max in 1u32..1000, jitter in 0u64..86_400_000) {
        let schedule = schedule.missed(Missed::RunAll(max)).with_jitter(Duration::from_millis(jitter));
        prop_assert_eq!(Schedule::from_json(&schedule.to_json()).unwrap(), schedule);
    }
}
