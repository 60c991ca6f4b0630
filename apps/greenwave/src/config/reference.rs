use std::fmt::Write;

use anyhow::{Context, Result};
use schemars::schema_for;
use serde_json::Value;

use super::{ANY, Config};

/// A `greenwave.toml` with every key, its default, and what it means. What maps and lists may hold is commented out.
pub(crate) fn reference() -> Result<String> {
    let schema = schema_for!(Config).to_value();
    let keys = toml::to_string(&Config::template()).context("the defaults are not TOML")?;
    let mut text = String::new();
    comment(&mut text, "", schema["description"].as_str());
    let mut section = &schema;
    // What stands before each line.
    let mut mark = "";
    for line in keys.lines() {
        if line.starts_with('[') {
            let path = line.trim_matches(['[', ']']);
            let mut description = None;
            section = path.split('.').fold(&schema, |section, name| {
                let property = property(section, name);
                description = property["description"].as_str().or(description);
                resolve(&schema, property)
            });
            let is_list = line.starts_with("[[");
            let lies_in_map = path.split('.').any(|name| name == ANY);
            mark = if is_list || lies_in_map { "# " } else { "" };
            text.push('\n');
            comment(&mut text, "", description);
            if !mark.is_empty() {
                text.push_str("#\n");
            }
        } else if !line.is_empty() {
            let name = line.split(' ').next().unwrap_or_default();
            if name == ANY {
                // An entry of a map of texts.
                mark = "# ";
            } else {
                text.push_str(if mark.is_empty() { "\n" } else { "#\n" });
                comment(&mut text, mark, section["properties"][name]["description"].as_str());
            }
        } else {
            continue;
        }
        writeln!(text, "{mark}{line}")?;
    }
    Ok(text)
}

fn comment(text: &mut String, mark: &str, description: Option<&str>) {
    for line in description.unwrap_or_default().lines() {
        text.push_str(format!("{mark}# {line}").trim_end());
        text.push('\n');
    }
}

/// A key's own schema, or that of what a map or a list holds.
fn property<'s>(section: &'s Value, name: &str) -> &'s Value {
    if name == ANY { &section["additionalProperties"] } else { &section["properties"][name] }
}

/// A section's own schema: properties refer to it by `$ref`, and lists have it in their items.
fn resolve<'s>(schema: &'s Value, property: &'s Value) -> &'s Value {
    let property = property.get("items").unwrap_or(property);
    let reference = property["$ref"].as_str().unwrap_or_default();
    reference.strip_prefix('#').and_then(|pointer| schema.pointer(pointer)).unwrap_or(property)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_reference_in_the_docs_is_generated_and_parses_to_the_defaults() {
        let text = reference().unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/greenwave.toml");
        expect_test::expect_file![file].assert_eq(&text);
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        for (number, line) in text.lines().enumerate() {
            let previous =
                number.checked_sub(1).and_then(|number| text.lines().nth(number)).unwrap_or_default();
            assert!(
                line.is_empty() || line.starts_with('#') || previous.starts_with('#'),
                "undocumented: {line}"
            );
        }
    }

    #[test]
    fn the_examples_in_the_reference_parse_too() {
        let is_key = |line: &&str| line.starts_with(['[', '"']) || line.contains(" = ");
        let text: Vec<_> =
            reference().unwrap().lines().map(|line| line.trim_start_matches("# ").to_owned()).collect();
        let text: Vec<_> = text.iter().map(String::as_str).filter(is_key).filter(is_toml).collect();
        let config = toml::from_str::<Config>(&text.join("\n")).unwrap();
        assert_eq!(config, Config::template());
    }

    #[test]
    fn the_config_in_the_guide_is_right() {
        let guide = include_str!("../../../../docs/guides/from-nginx-and-pm2.md");
        let text = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.routes_by_target(&["api"]).unwrap().len(), 2);
    }

    #[test]
    fn the_configs_in_the_guide_to_any_language_are_right() {
        let guide = include_str!("../../../../docs/guides/any-language.md");
        let configs: Vec<Config> = guide
            .split("```toml\n")
            .skip(1)
            .map(|rest| toml::from_str(rest.split("```").next().unwrap()).unwrap())
            .collect();
        let [one, several] = &configs[..] else { panic!("{} configs", configs.len()) };
        assert_eq!(one.app.instances.count(), 4);
        assert_eq!(several.routes_by_target(&["api"]).unwrap().len(), 2);
    }

    /// Not a sentence that has ` = ` in it.
    fn is_toml(line: &&str) -> bool {
        line.parse::<toml::Table>().is_ok()
    }
}
