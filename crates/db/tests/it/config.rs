use greenwave_db::{BatchConfig, PoolConfig};

#[test]
fn an_empty_config_is_the_default() {
    assert_eq!(serde_json::from_str::<PoolConfig>("{}").unwrap(), PoolConfig::default());
    assert_eq!(serde_json::from_str::<BatchConfig>("{}").unwrap(), BatchConfig::default());
}

#[test]
fn durations_read_as_people_write_them() {
    let config: PoolConfig =
        serde_json::from_str(r#"{ "slow_query": "250ms", "max_connections": 40 }"#).unwrap();
    assert_eq!(config.slow_query.as_millis(), 250);
    assert_eq!(config.max_connections, 40);
}

#[test]
fn an_unknown_knob_is_refused() {
    let error = serde_json::from_str::<PoolConfig>(r#"{ "max_conections": 40 }"#).unwrap_err();
    assert!(error.to_string().contains("max_conections"), "{error}");
}

#[cfg(feature = "sqlite")]
#[test]
fn the_config_of_sqlite_reads_as_people_write_it() {
    use greenwave_db::sqlite::{Config, Synchronous};

    assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), Config::default());
    let text = r#"{ "synchronous": "full", "pool": { "max_connections": 4, "max_statement": "5s" } }"#;
    let config: Config = serde_json::from_str(text).unwrap();
    assert_eq!(config.synchronous, Synchronous::Full);
    assert_eq!(config.pool.max_statement.as_secs(), 5);
    assert_eq!(config.pool.max_connections, 4);
}
