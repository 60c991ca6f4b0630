use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Histogram;

/// What a number belongs to: a metric's name and its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Series {
    /// The metric's name, such as `http.server.request.duration`.
    pub name: String,
    /// Names and values of its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Series {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == Some(*value))
    }
}

/// Counters, gauges and histograms by series.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// What only grows.
    #[serde(default, with = "pairs")]
    pub counters: BTreeMap<Series, u64>,
    /// What goes up and down.
    #[serde(default, with = "pairs")]
    pub gauges: BTreeMap<Series, f64>,
    /// Distributions.
    #[serde(default, with = "pairs")]
    pub histograms: BTreeMap<Series, Histogram>,
}

impl Metrics {
    /// The sum of the counters of this name that have (at least) these labels.
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let of_name = of_name(&self.counters, name).filter(|(series, _)| series.has(labels));
        of_name.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The sum of the gauges of this name that have (at least) these labels.
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        of_name(&self.gauges, name).filter(|(series, _)| series.has(labels)).map(|(_, value)| value).sum()
    }

    /// The histograms of this name that have (at least) these labels, put together.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        let mut sum = Histogram::default();
        for (series, histogram) in of_name(&self.histograms, name) {
            if series.has(labels) {
                sum.add(histogram);
            }
        }
        sum
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.counters.len() + self.gauges.len() + self.histograms.len()
    }

    /// Whether there are no series.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the other's numbers, series by series.
    pub fn add(&mut self, other: &Metrics) {
        for (series, count) in &other.counters {
            update(&mut self.counters, series, |sum| *sum = sum.saturating_add(*count));
        }
        for (series, value) in &other.gauges {
            update(&mut self.gauges, series, |sum| *sum += value);
        }
        for (series, histogram) in &other.histograms {
            update(&mut self.histograms, series, |sum| sum.add(histogram));
        }
    }

    /// What came after `earlier`: counters and histograms less what they were, gauges as they are now.
    ///
    /// Where a number fell, the process started anew, and all of it came after. Series in which nothing happened
    /// are left out.
    #[must_use]
    pub fn since(&self, earlier: &Metrics) -> Metrics {
        let mut delta = Metrics { gauges: self.gauges.clone(), ..Metrics::default() };
        for (series, count) in &self.counters {
            let before = earlier.counters.get(series).copied().unwrap_or(0);
            let more = count.checked_sub(before).unwrap_or(*count);
            if more > 0 {
                delta.counters.insert(series.clone(), more);
            }
        }
        for (series, histogram) in &self.histograms {
            let more = match earlier.histograms.get(series) {
                Some(before) => histogram.since(before),
                None => histogram.clone(),
            };
            if !more.is_empty() {
                delta.histograms.insert(series.clone(), more);
            }
        }
        delta
    }
}

/// The series of one name; names sort first, so they stand together.
pub(crate) fn of_name<'a, V>(
    map: &'a BTreeMap<Series, V>,
    name: &'a str,
) -> impl Iterator<Item = (&'a Series, &'a V)> {
    let first = Series { name: name.to_owned(), labels: BTreeMap::new() };
    map.range(first..).take_while(move |(series, _)| series.name == name)
}

fn update<V: Default>(map: &mut BTreeMap<Series, V>, series: &Series, change: impl FnOnce(&mut V)) {
    match map.get_mut(series) {
        Some(value) => change(value),
        None => change(map.entry(series.clone()).or_default()),
    }
}

/// JSON's keys are strings, so a map by series travels as a list of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Series;

    pub(super) fn serialize<S: Serializer, V: Serialize>(
        map: &BTreeMap<Series, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Series, V>, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}
