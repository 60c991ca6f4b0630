use expect_test::{Expect, expect};
use greenwave_lab::Report;

use crate::synthetic::{naps, settings};

/// A report of known numbers on a known machine.
async fn report() -> Report {
    let report = naps(40, 10).run(settings()).await.unwrap();
    let mut value = serde_json::to_value(report).unwrap();
    for arm in ["before", "after"] {
        let per_second = if arm == "before" { 100.0 } else { 412.5 };
        value[arm]["per_second"] = per_second.into();
        value[arm]["p50_ms"] = (40_000.0 / per_second / 10.0).into();
        value[arm]["p99_ms"] = (45_000.0 / per_second / 10.0).into();
        value[arm]["cpu_us"] = serde_json::Value::Null;
        for (number, round) in value[arm]["rounds"].as_array_mut().unwrap().iter_mut().enumerate() {
            *round = serde_json::json!({
                "operations": 200, "errors": 0, "per_second": per_second + number as f64,
                "p50_ms": 4_000.0 / per_second, "p99_ms": 4_500.0 / per_second, "cpu_us": null,
            });
        }
    }
    let ratio = |median: f64| serde_json::json!({"median": median, "low": median * 0.95, "high": median * 1.07, "confidence": 0.96875, "pairs": 6});
    value["ratios"] =
        serde_json::json!({"per_second": ratio(4.12), "p50": ratio(0.25), "p99": ratio(0.24), "cpu": null});
    value["verdict"]["text"] = "after completes 4.12 times as many naps as before (3.91 to 4.41)".into();
    value["facts"] = serde_json::json!([{"name": "bed", "value": "wide | soft"}]);
    value["environment"] = serde_json::json!({
        "cores": 2, "processor": "A Processor", "system": "An OS 1, Linux 6", "architecture": "x86_64",
        "build": "release", "greenwave": "0.1.0",
    });
    for key in ["operations", "errors"] {
        value["before"][key] = 1_200.into();
        value["after"][key] = 0.into();
    }
    serde_json::from_value(value).unwrap()
}

fn check(text: &str, expected: &Expect) {
    expected.assert_eq(text);
}

#[tokio::test(start_paused = true)]
async fn the_table_says_it_all() {
    check(
        &report().await.to_table(),
        &expect![[r#"
        Naps. Do shorter naps leave time for more?

        ╭───────────────┬───────────┬────────────┬────────────────────────╮
        │               ┆   before: ┆     after: ┆         after ÷ before │
        │               ┆ long naps ┆ short naps ┆                        │
        ╞═══════════════╪═══════════╪════════════╪════════════════════════╡
        │ naps a second ┆       100 ┆        412 ┆    4.12 (3.91 to 4.41) │
        │ p50, ms       ┆      40.0 ┆       9.70 ┆ 0.250 (0.237 to 0.268) │
        │ p99, ms       ┆      45.0 ┆       10.9 ┆ 0.240 (0.228 to 0.257) │
        │ CPU, µs each  ┆         – ┆          – ┆                      – │
        │ errors        ┆     1,200 ┆          0 ┆                        │
        ╰───────────────┴───────────┴────────────┴────────────────────────╯

        after completes 4.12 times as many naps as before (3.91 to 4.41)

        Ratios: the median of 6 pairs of neighbouring rounds and, in brackets, the range that holds the true median with 97 % confidence.
        6 rounds each, alternating; 2 s measured after 0.5 s of warm-up; 4 tasks; seed 7
        bed: wide | soft
        2 cores of A Processor, An OS 1, Linux 6, x86_64; Greenwave 0.1.0, release build
    "#]],
    );
}

#[tokio::test(start_paused = true)]
async fn the_markdown_is_a_page() {
    check(
        &report().await.to_markdown(Some("naps.svg")),
        &expect![[r#"
        # Naps

        Do shorter naps leave time for more?

        **After completes 4.12 times as many naps as before (3.91 to 4.41).**

        | | before: long naps | after: short naps | after ÷ before |
        |---|---:|---:|---:|
        | naps a second | 100 | 412 | 4.12 (3.91 to 4.41) |
        | p50, ms | 40.0 | 9.70 | 0.250 (0.237 to 0.268) |
        | p99, ms | 45.0 | 10.9 | 0.240 (0.228 to 0.257) |
        | CPU, µs each | – | – | – |
        | errors | 1,200 | 0 | |

        Ratios: the median of 6 pairs of neighbouring rounds and, in brackets, the range that holds the true median with 97 % confidence.

        ![Each round as a point, medians as lines](naps.svg)

        ## Rounds

        | round | before, naps a second | p99, ms | after, naps a second | p99, ms |
        |---:|---:|---:|---:|---:|
        | 1 | 100 | 45.0 | 412 | 10.9 |
        | 2 | 101 | 45.0 | 414 | 10.9 |
        | 3 | 102 | 45.0 | 414 | 10.9 |
        | 4 | 103 | 45.0 | 416 | 10.9 |
        | 5 | 104 | 45.0 | 416 | 10.9 |
        | 6 | 105 | 45.0 | 418 | 10.9 |

        ## Circumstances

        - 6 rounds each, alternating; 2 s measured after 0.5 s of warm-up; 4 tasks; seed 7
        - bed: wide | soft
        - 2 cores of A Processor, An OS 1, Linux 6, x86_64; Greenwave 0.1.0, release build
    "#]],
    );
}

#[tokio::test(start_paused = true)]
async fn the_json_has_a_stable_shape_and_reads_back() {
    let report = report().await;
    let json = report.to_json().unwrap();
    let read = serde_json::from_str::<Report>(&json).unwrap();
    // The last bit of a number may differ; nothing that a reader sees does.
    assert_eq!(read.to_markdown(None), report.to_markdown(None));
    let mut paths = String::new();
    outline(&serde_json::from_str(&json).unwrap(), "", &mut paths);
    check(
        &paths,
        &expect![[r#"
        .after.cpu_us: null
        .after.errors: number
        .after.first_error: null
        .after.label: string
        .after.operations: number
        .after.p50_ms: number
        .after.p99_ms: number
        .after.per_second: number
        .after.rounds[].cpu_us: null
        .after.rounds[].errors: number
        .after.rounds[].operations: number
        .after.rounds[].p50_ms: number
        .after.rounds[].p99_ms: number
        .after.rounds[].per_second: number
        .before.cpu_us: null
        .before.errors: number
        .before.first_error: null
        .before.label: string
        .before.operations: number
        .before.p50_ms: number
        .before.p99_ms: number
        .before.per_second: number
        .before.rounds[].cpu_us: null
        .before.rounds[].errors: number
        .before.rounds[].operations: number
        .before.rounds[].p50_ms: number
        .before.rounds[].p99_ms: number
        .before.rounds[].per_second: number
        .environment.architecture: string
        .environment.build: string
        .environment.cores: number
        .environment.greenwave: string
        .environment.processor: string
        .environment.system: string
        .facts[].name: string
        .facts[].value: string
        .name: string
        .question: string
        .ratios.cpu: null
        .ratios.p50.confidence: number
        .ratios.p50.high: number
        .ratios.p50.low: number
        .ratios.p50.median: number
        .ratios.p50.pairs: number
        .ratios.p99.confidence: number
        .ratios.p99.high: number
        .ratios.p99.low: number
        .ratios.p99.median: number
        .ratios.p99.pairs: number
        .ratios.per_second.confidence: number
        .ratios.per_second.high: number
        .ratios.per_second.low: number
        .ratios.per_second.median: number
        .ratios.per_second.pairs: number
        .settings.concurrency: number
        .settings.duration: string
        .settings.max_error_share: number
        .settings.rounds: number
        .settings.seed: number
        .settings.warm_up: string
        .stopped_early: bool
        .title: string
        .unit: string
        .verdict.finding: string
        .verdict.text: string
        .warnings[]
    "#]],
    );
}

/// The path and type of each value, of arrays of their first element.
fn outline(value: &serde_json::Value, path: &str, paths: &mut String) {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| outline(value, &format!("{path}.{name}"), paths));
        }
        Value::Array(items) => match items.first() {
            Some(item) => outline(item, &format!("{path}[]"), paths),
            None => *paths += &format!("{path}[]\n"),
        },
        Value::Null => *paths += &format!("{path}: null\n"),
        Value::Bool(_) => *paths += &format!("{path}: bool\n"),
        Value::Number(_) => *paths += &format!("{path}: number\n"),
        Value::String(_) => *paths += &format!("{path}: string\n"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_plot_is_well_formed_and_has_a_point_a_round() {
    let svg = report().await.to_svg().unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("an open tag: {tag}"));
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name.trim())),
            None if tag.ends_with('/') || tag.starts_with('!') || tag.starts_with('?') => {}
            None => open.push(tag.split_whitespace().next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
    // Six rounds of two arms in two panels, and one of each arm in the key.
    assert_eq!(svg.matches("<circle").count(), 6 * 2 * 2 + 2);
    assert!(svg.contains("before: long naps") && svg.contains("after: short naps"));
}

#[tokio::test(start_paused = true)]
async fn names_with_markup_do_not_break_the_plot_or_the_table() {
    let mut report = report().await;
    report.before.label = "a < b & c | d".to_owned();
    assert!(report.to_svg().unwrap().contains("a &lt; b &amp; c | d"));
    assert!(report.to_markdown(None).contains("a < b & c \\| d"));
}

#[tokio::test]
async fn the_files_of_a_report_bear_its_name_and_stay_in_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut report = naps(2, 1)
        .run(greenwave_lab::Settings {
            rounds: 1,
            warm_up: std::time::Duration::ZERO,
            duration: std::time::Duration::from_millis(50),
            ..settings()
        })
        .await
        .unwrap();
    report.name = "../naps".to_owned();
    let out = folder.path().join("deeper/still");
    report.write_to(&out).await.unwrap();
    let mut files: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["---naps.json", "---naps.md", "---naps.svg"]);
    assert!(std::fs::read_to_string(out.join("---naps.md")).unwrap().contains("(---naps.svg)"));

    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = report.write_to(&folder.path().join("file")).await.unwrap_err().to_string();
    assert!(error.starts_with("could not write "), "{error}");
}

#[test]
fn the_committed_results_are_what_the_readme_says_and_what_is_rendered_today() {
    let readme = include_str!("../../README.md");
    for (folder, json, markdown) in [
        ("results", include_str!("../../results/index.json"), include_str!("../../results/index.md")),
        (
            "results/postgres",
            include_str!("../../results/postgres/index.json"),
            include_str!("../../results/postgres/index.md"),
        ),
    ] {
        let report: Report = serde_json::from_str(json).unwrap();
        assert_eq!(report.to_markdown(Some("index.svg")), markdown, "{folder}");
        let ratio = report.verdict.text.strip_prefix("after completes ").unwrap();
        let (times, spread) = (ratio.split(' ').next().unwrap(), ratio.split_once('(').unwrap().1);
        let link = format!("[{times} times ({spread}]({folder}/index.md)");
        assert!(readme.contains(&link), "the README lacks {link}");
    }
}
