use std::fmt::Write;

use anyhow::{Context, Result};
use schemars::schema_for;
use serde_json::Value;

use super::Config;

/// A `greenwave.toml` with every key, its default, and what it means.
pub(crate) fn reference() -> Result<String> {
    let schema = schema_for!(Config).to_value();
    let defaults = toml::to_string(&Config::default()).context("the defaults are not TOML")?;
    let mut text = String::new();
    comment(&mut text, schema["description"].as_str());
    let mut section = &schema;
    for line in defaults.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        if let Some(path) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let mut description = None;
            section = path.split('.').fold(&schema, |section, name| {
                let property = &section["properties"][name];
                description = property["description"].as_str();
                resolve(&schema, property)
            });
            text.push('\n');
            comment(&mut text, description);
        } else if !line.is_empty() {
            text.push('\n');
            comment(&mut text, section["properties"][name]["description"].as_str());
        } else {
            continue;
        }
        writeln!(text, "{line}")?;
    }
    Ok(text)
}

fn comment(text: &mut String, description: Option<&str>) {
    for line in description.unwrap_or_default().lines() {
        text.push_str(format!("# {line}").trim_end());
        text.push('\n');
    }
}

/// A section's own schema: properties refer to it by `$ref`.
fn resolve<'s>(schema: &'s Value, property: &'s Value) -> &'s Value {
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
}
