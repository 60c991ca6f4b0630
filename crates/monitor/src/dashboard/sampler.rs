//! Turns a row of snapshots into rates: what is new since the last one, over a window, with a history.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::overview::{Overview, Point};
use super::{Sources, derive};
use crate::{Description, Metrics, Process};

/// The page's numbers are taken over so many observations: enough for a steady p99, few enough to follow.
const WINDOW: usize = 10;
/// A process that has been away for longer than the window is not new, its snapshot was late.
const NEW_FOR_MS: u64 = 10_000;
/// Five minutes of history.
const HISTORY: usize = 300;
/// A process that could not be asked for so long is taken for gone.
const FORGET_AFTER: u32 = 60;
/// Where each life of a process brings new labels, the sum would grow for ever; above this it starts anew.
const MAX_SERIES: usize = 50_000;

#[derive(Default)]
pub(super) struct Sampler {
    seen: HashMap<String, Seen>,
    started: bool,
    total: Metrics,
    descriptions: BTreeMap<String, Description>,
    window: VecDeque<(Metrics, Duration)>,
    history: VecDeque<Point>,
}

struct Seen {
    process: Process,
    away_for: u32,
}

impl Sampler {
    /// Takes in what the source says at `now_ms`, `elapsed` after it said so last.
    pub(super) fn observe(&mut self, sources: Sources, now_ms: u64, elapsed: Duration) -> Overview {
        let gauges = sources.snapshots.total().gauges;
        self.descriptions.extend(sources.snapshots.descriptions);
        let mut second = Metrics::default();
        for (id, process) in sources.snapshots.processes {
            self.take_in(id, process, now_ms, &mut second);
        }
        second.gauges.clear();
        self.total.gauges = gauges;
        self.forget();

        let point = derive::point(&second, &self.total, elapsed, now_ms);
        if self.started {
            self.history.push_back(point);
            self.window.push_back((second, elapsed));
        }
        self.started = true;
        while self.history.len() > HISTORY {
            self.history.pop_front();
        }
        while self.window.len() > WINDOW {
            self.window.pop_front();
        }
        let mut recent = Metrics::default();
        let mut span = Duration::ZERO;
        for (second, elapsed) in &self.window {
            recent.add(second);
            span += *elapsed;
        }
        let overview = derive::overview(&recent, &self.total, span);
        Overview { time_ms: now_ms, point, instances: sources.instances, ..overview }
    }

    /// Everything counted so far, for Prometheus: processes that ended stay in it, so that no counter falls.
    pub(super) fn total(&self) -> (&Metrics, &BTreeMap<String, Description>) {
        (&self.total, &self.descriptions)
    }

    pub(super) fn history(&self) -> &VecDeque<Point> {
        &self.history
    }

    fn take_in(&mut self, id: String, process: Process, now_ms: u64, second: &mut Metrics) {
        let mut news = match self.seen.get(&id) {
            Some(seen) => process.metrics.since(&seen.process.metrics),
            None => process.metrics.clone(),
        };
        news.gauges.clear();
        self.total.add(&news);
        // A process that is new to us but old counts in the total; its past did not happen in this second.
        let is_new = self.started && now_ms.saturating_sub(process.started_ms) <= NEW_FOR_MS;
        if is_new || self.seen.contains_key(&id) {
            second.add(&news);
        }
        self.seen.insert(id, Seen { process, away_for: 0 });
    }

    fn forget(&mut self) {
        self.seen.retain(|_, seen| {
            seen.away_for += 1; // 1 for those just seen
            seen.away_for <= FORGET_AFTER
        });
        if self.total.len() > MAX_SERIES {
            let gauges = std::mem::take(&mut self.total.gauges);
            self.total = Metrics { gauges, ..Metrics::default() };
            for seen in self.seen.values() {
                self.total.add(&Metrics { gauges: BTreeMap::new(), ..seen.process.metrics.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Series, Snapshot};

    const SECOND: Duration = Duration::from_secs(1);

    /// Processes by id, when they started, and how many events they have published.
    fn sources(processes: &[(&str, u64, u64)]) -> Sources {
        let processes = processes.iter().map(|(id, started_ms, published)| {
            let series = Series {
                name: "greenwave.events.published".into(),
                labels: BTreeMap::from([("event".into(), "e".into())]),
            };
            let metrics = Metrics { counters: BTreeMap::from([(series, *published)]), ..Metrics::default() };
            ((*id).to_owned(), Process { started_ms: *started_ms, metrics })
        });
        let snapshots = Snapshot { processes: processes.collect(), ..Snapshot::default() };
        Sources { instances: Vec::new(), snapshots }
    }

    /// What the page says of the events after each observation: how many in all, and how many in the window.
    fn check(observations: &[&[(&str, u64, u64)]], expected: &[(u64, f64)]) {
        let mut sampler = Sampler::default();
        let mut now_ms = 1_000_000;
        let mut said = Vec::new();
        for processes in observations {
            let overview = sampler.observe(sources(processes), now_ms, SECOND);
            let row = &overview.events[0];
            said.push((row.published, (row.rate * overview.window_seconds).round()));
            now_ms += 1000;
        }
        assert_eq!(said, expected);
    }

    #[test]
    fn what_came_before_the_dashboard_is_no_rate() {
        check(&[&[("a", 0, 500)], &[("a", 0, 503)]], &[(500, 0.0), (503, 3.0)]);
    }

    #[test]
    fn a_restarted_process_is_counted_on() {
        // The second life of the process has done 2 when the first, at 500, is gone.
        check(
            &[&[("a", 0, 500)], &[("a", 0, 510)], &[("b", 1_001_500, 2)], &[("b", 1_001_500, 6)]],
            &[(500, 0.0), (510, 10.0), (512, 12.0), (516, 16.0)],
        );
    }

    #[test]
    fn a_snapshot_that_came_late_is_no_flood() {
        check(&[&[("a", 0, 500)], &[("a", 0, 500), ("b", 0, 900)]], &[(500, 0.0), (1400, 0.0)]);
        let away: &[(&str, u64, u64)] = &[("b", 0, 1)];
        check(
            &[&[("a", 0, 500), ("b", 0, 1)], away, away, &[("a", 0, 504), ("b", 0, 1)]],
            &[(501, 0.0), (501, 0.0), (501, 0.0), (505, 4.0)],
        );
    }

    #[test]
    fn the_window_and_the_history_are_bounded() {
        let mut sampler = Sampler::default();
        let mut last = Overview::default();
        for second in 0..1000 {
            last = sampler.observe(sources(&[("a", 0, second)]), second * 1000, SECOND);
        }
        assert_eq!(last.window_seconds, 10.0);
        assert_eq!(last.events[0].rate, 1.0);
        assert_eq!(sampler.history().len(), HISTORY);
        // A new process each second, as a crash loop makes them, is forgotten in time.
        for second in 0..1000 {
            sampler.observe(sources(&[(&second.to_string(), 0, 1)]), second * 1000, SECOND);
        }
        assert!(sampler.seen.len() <= FORGET_AFTER as usize + 1, "{}", sampler.seen.len());
    }
}
