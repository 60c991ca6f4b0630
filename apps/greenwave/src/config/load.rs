use std::{
    collections::HashMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use super::{ANY, Config};

const FILE: &str = "greenwave.toml";
const PREFIX: &str = "GREENWAVE_";
/// Variables with the prefix that are no keys of the file.
const RESERVED: [&str; 4] =
    ["GREENWAVE_CONFIG", "GREENWAVE_SOCKET", "GREENWAVE_MONITOR_SOCKET", "GREENWAVE_TEST_"];

/// The data directory alone, from the same places. A config that is wrong elsewhere is no reason not to find what runs.
pub(crate) fn data_dir(file: Option<&Path>) -> PathBuf {
    let set = || {
        let text = fs::read_to_string(file_for(file)).ok()?;
        Some(PathBuf::from(text.parse::<Table>().ok()?.get("data_dir")?.as_str()?))
    };
    let variable = env::var_os("GREENWAVE_DATA_DIR").map(PathBuf::from);
    variable.or_else(set).unwrap_or_else(|| Config::default().data_dir)
}

fn file_for(given: Option<&Path>) -> PathBuf {
    let named = given.map(PathBuf::from).or_else(|| env::var_os("GREENWAVE_CONFIG").map(PathBuf::from));
    named.unwrap_or_else(|| FILE.into())
}

/// Reads the file (the one given, else `GREENWAVE_CONFIG`, else `greenwave.toml` here if there is one), then the
/// environment.
pub(crate) fn load(file: Option<&Path>) -> Result<Config> {
    let path = file_for(file);
    let is_named = file.is_some() || env::var_os("GREENWAVE_CONFIG").is_some();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => String::new(),
        Err(error) => {
            bail!("{}: {error}; check the path given by --config or GREENWAVE_CONFIG", path.display())
        }
    };
    let variables = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    parse(&text, &path.display().to_string(), variables)
}

fn parse(text: &str, file: &str, variables: impl Iterator<Item = (String, String)>) -> Result<Config> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| syntax_error(text, file, &error))?;
    let template = Table::try_from(Config::template()).context("the defaults are not a TOML table")?;
    refuse_unknown(&table, &template, file)?;
    // The short names first: the full ones stand above them.
    let mut variables: Vec<_> = variables.collect();
    variables.sort_by_key(|(name, _)| name.starts_with(PREFIX));
    let mut sources = HashMap::new();
    for (name, value) in variables {
        if let Some(key) = set_from_environment(&mut table, &template, &name, value)? {
            sources.insert(key, name);
        }
    }
    serde_path_to_error::deserialize(table).map_err(|error| {
        let key = error.path().to_string();
        let source = sources.get(&key).map_or(file.to_owned(), |name| format!("environment: {name}"));
        anyhow::anyhow!("{source}: {key}: {}", error.into_inner().message().trim())
    })
}

fn syntax_error(text: &str, file: &str, error: &toml::de::Error) -> anyhow::Error {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    anyhow::anyhow!("{file}, line {line}: {}", error.message())
}

fn refuse_unknown(table: &Table, template: &Table, file: &str) -> Result<()> {
    match unknown(table, template, "") {
        Some(key) => bail!("{file}: unknown key `{key}`{}", hint(&key, template)),
        None => Ok(()),
    }
}

/// The first key that the template lacks.
fn unknown(table: &Table, template: &Table, prefix: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let path = format!("{prefix}{key}");
        match (value, entry(template, key)) {
            (_, None) => Some(path),
            (Value::Table(table), Some(Value::Table(template))) => {
                unknown(table, template, &format!("{path}."))
            }
            (Value::Array(list), Some(Value::Array(template))) => {
                let template = template.first()?.as_table()?;
                list.iter().enumerate().find_map(|(index, item)| {
                    unknown(item.as_table()?, template, &format!("{path}[{index}]."))
                })
            }
            // A value of the wrong kind is told later, with what would be right.
            _ => None,
        }
    })
}

/// What the template has for a key: the key itself, or what stands for any.
fn entry<'t>(template: &'t Table, key: &str) -> Option<&'t Value> {
    template.get(key).or_else(|| template.get(ANY))
}

/// Sets the key that a variable names, and returns it; `None` for a variable that is none of ours.
fn set_from_environment(
    table: &mut Table,
    template: &Table,
    name: &str,
    value: String,
) -> Result<Option<String>> {
    let key = match name {
        "DATABASE_URL" => "shop.database_url".into(),
        "REDIS_URL" => "shop.redis_url".into(),
        _ if RESERVED.iter().any(|reserved| name.starts_with(reserved)) => return Ok(None),
        _ => match name.strip_prefix(PREFIX) {
            Some(path) => path.to_lowercase().replace("__", "."),
            None => return Ok(None),
        },
    };
    let path: Vec<_> = key.split('.').collect();
    let default = path.split_first().and_then(|(first, rest)| {
        rest.iter().try_fold(entry(template, first)?, |section, key| entry(section.as_table()?, key))
    });
    let value = match default {
        None | Some(Value::Table(_)) => None,
        Some(Value::String(_)) => Some(Value::String(value)),
        Some(_) => {
            let parsed = format!("value = {value}").parse::<Table>().ok();
            Some(parsed.and_then(|mut table| table.remove("value")).unwrap_or(Value::String(value)))
        }
    };
    // The case of a variable's name is lost here: it would be set under another.
    let is_variable = matches!(path[..], ["app", "env", ..] | ["apps", _, "env", ..]);
    if is_variable {
        bail!(
            "environment: {name}: variables of an app are set in the file, in an `env_files`, or as they are"
        );
    }
    let Some(value) = value else {
        bail!("environment: {name}: unknown key `{key}`{}", hint(&key, template))
    };
    set(table, &path, value);
    Ok(Some(key))
}

fn set(table: &mut Table, path: &[&str], value: Value) {
    match path {
        [] => {}
        [key] => drop(table.insert((*key).into(), value)),
        [section, rest @ ..] => {
            let section = table.entry(*section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                set(section, rest, value);
            }
        }
    }
}

/// The full names of all keys and sections.
fn keys(template: &Table, prefix: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (key, value) in template {
        let full = format!("{prefix}{key}");
        match value {
            Value::Table(section) => all.extend(keys(section, &format!("{full}."))),
            Value::Array(list) => {
                let item = list.first().and_then(Value::as_table);
                all.extend(item.into_iter().flat_map(|item| keys(item, &format!("{full}[]."))));
            }
            _ => {}
        }
        all.push(full);
    }
    all
}

/// The known key that is most like this one; in a map or a list, with the name or the index that this one has.
fn hint(key: &str, template: &Table) -> String {
    let likeness = |known: &String| strsim::jaro_winkler(key, known);
    let alike = keys(template, "").into_iter().map(|known| in_place(&known, key));
    let nearest = alike.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    nearest.map_or(String::new(), |nearest| {
        format!("; did you mean `{nearest}`? (all keys: greenwave config --reference)")
    })
}

fn in_place(known: &str, key: &str) -> String {
    let mut actual = key.split('.');
    let parts = known.split('.').map(|part| {
        let actual = actual.next();
        let list = part.strip_suffix("[]");
        match actual {
            Some(actual) if part == ANY || list.is_some_and(|list| actual.starts_with(list)) => actual,
            _ => part,
        }
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, variables: &[(&str, &str)], expected: Expect) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let answer = match parse(text, "greenwave.toml", variables) {
            Ok(config) => toml::to_string(&config).unwrap(),
            Err(error) => format!("{error:#}"),
        };
        expected.assert_eq(&answer);
    }

    #[test]
    fn the_environment_stands_above_the_file() {
        let variables = [
            ("GREENWAVE_EDGE__LISTEN", "[::1]:1"),
            ("GREENWAVE_APP__INSTANCES", "max"),
            ("GREENWAVE_DASHBOARD__TOKEN", "123"),
        ];
        let text =
            "[edge]\nlisten = \"127.0.0.1:2\"\n[edge.proxy]\nconnect_timeout = \"5s\"\n[app]\ninstances = 3";
        let config = parse(text, "f", variables.iter().map(|(n, v)| ((*n).into(), (*v).into()))).unwrap();
        assert_eq!(config.edge.listen, "[::1]:1");
        assert_eq!(config.edge.proxy.connect_timeout.as_secs(), 5);
        assert_eq!(config.dashboard.token, "123");
        assert_eq!(config.app.instances, "max".parse().unwrap());
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest() {
        check(
            "[edge]\nlisen = 1",
            &[],
            expect![
                "greenwave.toml: unknown key `edge.lisen`; did you mean `edge.listen`? (all keys: greenwave config --reference)"
            ],
        );
        check(
            "",
            &[("GREENWAVE_EDGE__LISTN", "x")],
            expect![
                "environment: GREENWAVE_EDGE__LISTN: unknown key `edge.listn`; did you mean `edge.listen`? (all keys: greenwave config --reference)"
            ],
        );
        check(
            "[dashbord]\n",
            &[],
            expect![
                "greenwave.toml: unknown key `dashbord`; did you mean `dashboard`? (all keys: greenwave config --reference)"
            ],
        );
    }

    #[test]
    fn keys_of_maps_and_lists_are_known_under_any_name() {
        let text = "[apps.api]\ncommand = [\"x\"]\nenv.Foo = \"1\"\n[upstreams.old]\naddresses = [\"db:1\"]\n\
                    [[routes]]\npath = \"/old\"\nto = \"old\"\n[[edge.proxy.rate_limits]]\nrequests = 5";
        let variables = [("GREENWAVE_APPS__API__INSTANCES", "3")].map(|(n, v)| (n.into(), v.into()));
        let config = parse(text, "f", variables.into_iter()).unwrap();
        assert_eq!(config.apps["api"].env["Foo"], "1");
        assert_eq!(config.apps["api"].instances.count(), 3);
        assert_eq!((config.routes.len(), config.edge.proxy.rate_limits[0].requests), (1, 5));
        check(
            "[apps.api]\ncomand = []",
            &[],
            expect![
                "greenwave.toml: unknown key `apps.api.comand`; did you mean `apps.api.command`? (all keys: greenwave config --reference)"
            ],
        );
        check(
            "[[routes]]\nto = \"a\"\n[[routes]]\nhots = \"b\"",
            &[],
            expect![
                "greenwave.toml: unknown key `routes[1].hots`; did you mean `routes[1].host`? (all keys: greenwave config --reference)"
            ],
        );
        check(
            "",
            &[("GREENWAVE_APP__ENV__SECRET", "x")],
            expect![
                "environment: GREENWAVE_APP__ENV__SECRET: variables of an app are set in the file, in an `env_files`, or as they are"
            ],
        );
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        check(
            "[app]\ninstances = 0",
            &[],
            expect![[r#"greenwave.toml: app.instances: expected a number from 1 to 65535, or "max""#]],
        );
        check(
            "[app]\ninstances = \"many\"",
            &[],
            expect![[r#"greenwave.toml: app.instances: expected a number from 1 to 65535, or "max""#]],
        );
        check(
            "[edge.proxy]\ndrain_timeout = \"soon\"",
            &[],
            expect![[
                r#"greenwave.toml: edge.proxy.drain_timeout: invalid value: string "soon", expected a duration"#
            ]],
        );
        check(
            "edge = 3",
            &[],
            expect!["greenwave.toml: edge: invalid type: integer `3`, expected struct Edge"],
        );
        check("[edge\n", &[], expect!["greenwave.toml, line 1: unclosed table, expected `]`"]);
        check(
            "",
            &[("GREENWAVE_SHOP__NAIVE", "perhaps")],
            expect![[
                r#"environment: GREENWAVE_SHOP__NAIVE: shop.naive: invalid type: string "perhaps", expected a boolean"#
            ]],
        );
    }
}
