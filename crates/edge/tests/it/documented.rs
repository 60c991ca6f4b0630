//! What the README tables is what there is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use greenwave_edge::{LogFileConfig, ProxyConfig, RateLimit, SupervisorConfig, WatchConfig, telemetry};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use crate::clients::{LIMIT, RunningProxy};
use crate::upstreams::{OK, Scripted};

const README: &str = include_str!("../../README.md");

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeSet<String>>>);

impl Seen {
    fn note(&self, key: &Key) {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        self.0.lock().unwrap().insert(format!("{} {}", key.name(), labels.join(",")).trim().to_owned());
    }

    fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap().iter().any(|seen| seen.split(' ').next() == Some(name))
    }
}

impl Recorder for Seen {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.note(key);
        Counter::noop()
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.note(key);
        Gauge::noop()
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.note(key);
        Histogram::noop()
    }
}

#[tokio::test]
async fn a_request_emits_the_metrics_of_the_table() {
    let seen = Seen::default();
    // The threads of the proxy know no other than the global one. Other tests of this process add to what is seen.
    metrics::set_global_recorder(seen.clone()).unwrap();
    // One upstream dies over each request, until it is left alone.
    let (dies, answers) = (Scripted::start("").await, Scripted::start(OK).await);
    let proxy = RunningProxy::before(&[dies.address, answers.address]).await;
    let ejected = async {
        while !seen.has(telemetry::EJECTIONS) {
            assert_eq!(proxy.get("/").await.status(), 200);
        }
    };
    tokio::time::timeout(LIMIT, ejected).await.expect("no upstream is ejected");
    proxy.cancel.cancel();
    proxy.served.await.unwrap().unwrap();
    let by_status = "greenwave.edge.request.duration http.response.status_code=200";
    assert!(seen.0.lock().unwrap().contains(by_status), "{:?}", seen.0);
    for name in telemetry::METRICS {
        assert!(seen.has(name), "{name} was not emitted");
        assert!(README.contains(&format!("| `{name}` |")), "{name} is not in the README");
    }
    for target in [telemetry::SUPERVISOR_TARGET, telemetry::PROXY_TARGET, telemetry::STATUS] {
        assert!(README.contains(&format!("`{target}`")), "{target} is not in the README");
    }
}

#[test]
fn the_readme_lists_every_key_with_its_default() {
    check_rows("", serde_json::to_value(SupervisorConfig::default()).unwrap());
    check_rows("", serde_json::to_value(LogFileConfig::default()).unwrap());
    check_rows("", serde_json::to_value(WatchConfig::default()).unwrap());
    check_rows("", serde_json::to_value(ProxyConfig::default()).unwrap());
    check_rows("", serde_json::to_value(RateLimit::default()).unwrap());
}

fn check_rows(prefix: &str, config: serde_json::Value) {
    for (key, value) in config.as_object().unwrap() {
        let default = match value {
            serde_json::Value::Object(keys) if !keys.is_empty() => {
                check_rows(&format!("{prefix}{key}."), value.clone());
                continue;
            }
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(items) => {
                let items = items.iter().map(|item| format!("`{}`", item.as_str().unwrap()));
                items.collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        let row = format!("| `{prefix}{key}` | {default} | ").replace("|  |", "| |");
        assert!(README.contains(&row), "the README has no row that begins with {row:?}");
    }
}

#[test]
fn an_unknown_key_is_refused() {
    assert!(serde_json::from_str::<ProxyConfig>(r#"{"upstream_wait": "3s"}"#).is_ok());
    assert!(serde_json::from_str::<ProxyConfig>(r#"{"upstream_wiat": "3s"}"#).is_err());
    let supervisor =
        serde_json::from_str::<SupervisorConfig>(r#"{"health": "/up", "check": {"interval": "5s"}}"#);
    assert_eq!(supervisor.unwrap().health.to_string(), "/up");
}

#[cfg(feature = "schemars")]
#[test]
fn the_schemas_describe_every_key_and_know_its_default() {
    let check = |schema: schemars::Schema, defaults: serde_json::Value| {
        let schema = schema.to_value();
        for (key, default) in defaults.as_object().unwrap() {
            let property = &schema["properties"][key];
            assert!(property["description"].is_string(), "{key} is not described");
            assert_eq!(property["default"], *default, "{key}");
        }
    };
    let defaults = SupervisorConfig::default();
    check(schemars::schema_for!(greenwave_edge::CheckConfig), serde_json::to_value(&defaults.check).unwrap());
    check(schemars::schema_for!(SupervisorConfig), serde_json::to_value(&defaults).unwrap());
    check(schemars::schema_for!(ProxyConfig), serde_json::to_value(ProxyConfig::default()).unwrap());
}
