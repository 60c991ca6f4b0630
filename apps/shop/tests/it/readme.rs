//! The README names files that are there, and every code of a failure.

use std::path::Path;

const README: &str = include_str!("../../README.md");

#[test]
fn files_that_the_readme_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = README.split('`').skip(1).step_by(2);
    let paths = named.filter(|text| text.starts_with("src/") || text.starts_with("migrations/"));
    let mut count = 0;
    for path in paths.flat_map(|path| ["postgres", "sqlite"].map(|database| path.replace('*', database))) {
        assert!(root.join(&path).exists(), "{path}");
        count += 1;
    }
    assert!(count > 10, "{count} paths");
}

#[test]
fn the_readme_tells_every_route_and_command() {
    for (path, item) in greenwave_shop::http::openapi().paths.paths {
        let document = serde_json::to_value(item).unwrap();
        for method in
            document.as_object().unwrap().keys().filter(|key| ["get", "post"].contains(&key.as_str()))
        {
            assert!(README.contains(&format!("`{} {path}", method.to_uppercase())), "{method} {path}");
        }
    }
    for command in ["serve", "worker", "seed", "openapi"] {
        assert!(README.contains(&format!("`shop {command}")), "{command}");
    }
}
