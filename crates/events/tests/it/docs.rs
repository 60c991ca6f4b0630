//! The README's tables say what the code does.

use greenwave_events::{BusConfig, telemetry};
use serde_json::Value;

const README: &str = include_str!("../../README.md");

#[test]
fn the_readme_names_every_signal() {
    for name in [
        telemetry::PUBLISHED,
        telemetry::HANDLED,
        telemetry::HANDLE_DURATION,
        telemetry::LAG,
        telemetry::IN_PROCESS,
        telemetry::HANDLE_SPAN,
        telemetry::EVENT,
        telemetry::SUBSCRIPTION,
        telemetry::OUTCOME,
    ] {
        assert!(README.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn the_readme_states_every_default() {
    check("", &serde_json::to_value(BusConfig::default()).unwrap());
}

#[cfg(feature = "nats")]
#[test]
fn the_readme_states_every_default_of_jetstream() {
    let mut config = serde_json::to_value(greenwave_events::jetstream::JetStreamConfig::default()).unwrap();
    config.as_object_mut().unwrap().remove("subscription");
    check("", &config);
    let consume = greenwave_events::jetstream::ConsumeConfig::default();
    check("", &serde_json::to_value(consume).unwrap());
}

fn check(prefix: &str, config: &Value) {
    for (key, value) in config.as_object().unwrap() {
        let default = match value {
            Value::Object(_) => {
                check(&format!("{key}."), value);
                continue;
            }
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let row = format!("| `{prefix}{key}` | `{default}` |");
        assert!(README.contains(&row), "missing: {row}");
    }
}

#[test]
fn unknown_settings_are_refused() {
    let refused = serde_json::from_str::<BusConfig>(r#"{"pol_interval": "1s"}"#).unwrap_err();
    assert!(refused.to_string().contains("unknown field `pol_interval`"), "{refused}");
    let read: BusConfig = serde_json::from_str(r#"{"subscription": {"timeout": "5s"}}"#).unwrap();
    assert_eq!(read.subscription.timeout.as_secs(), 5);
}
