use comfy_table::{CellAlignment, Table, presets};

use super::{Report, figures};

/// The quantities of a report: a heading, before, after, and their ratio.
pub(super) fn rows(report: &Report) -> Vec<[String; 4]> {
    let (before, after, ratios) = (&report.before, &report.after, &report.ratios);
    let row = |name: &str, before, after, ratio| {
        [name.to_owned(), figures::maybe(before), figures::maybe(after), figures::ratio(ratio)]
    };
    let mut rows = vec![
        row(&format!("{} a second", report.unit), before.per_second, after.per_second, ratios.per_second),
        row("p50, ms", before.p50_ms, after.p50_ms, ratios.p50),
        row("p99, ms", before.p99_ms, after.p99_ms, ratios.p99),
        row("CPU, µs each", before.cpu_us, after.cpu_us, ratios.cpu),
    ];
    let errors = [before.errors, after.errors].map(figures::count);
    let [errors_before, errors_after] = errors;
    rows.push(["errors".to_owned(), errors_before, errors_after, String::new()]);
    rows
}

/// How the ratios come about, in a sentence.
pub(super) fn method(report: &Report) -> String {
    let Some(ratio) = report.ratios.per_second else {
        return "No pair of rounds is complete.".to_owned();
    };
    match ratio.pairs {
        1 => "The ratio is of one pair of rounds.".to_owned(),
        pairs => format!(
            "Ratios: the median of {pairs} pairs of neighbouring rounds and, in brackets, the range that holds \
             the true median with {:.0} % confidence.",
            ratio.confidence * 100.0
        ),
    }
}

/// How the arms were driven, in a line.
pub(super) fn drive(report: &Report) -> String {
    let settings = &report.settings;
    let (done, asked) = (report.before.rounds.len(), settings.rounds as usize);
    format!(
        "{}{asked} {} each, alternating; {} s measured after {} s of warm-up; {} {}; seed {}",
        if done == asked { String::new() } else { format!("{done} of ") },
        if asked == 1 { "round" } else { "rounds" },
        settings.duration.as_secs_f64(),
        settings.warm_up.as_secs_f64(),
        settings.concurrency,
        if settings.concurrency == 1 { "task" } else { "tasks" },
        settings.seed.unwrap_or_default()
    )
}

pub(super) fn render(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED.with_rounded_corners());
    table.set_header([
        String::new(),
        format!("before:\n{}", report.before.label),
        format!("after:\n{}", report.after.label),
        "after ÷ before".to_owned(),
    ]);
    for row in rows(report) {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text =
        format!("{}. {}\n\n{}\n\n{}\n\n", report.title, report.question, table.trim_fmt(), report.verdict);
    text += &format!("{}\n{}\n", method(report), drive(report));
    for fact in &report.facts {
        text += &format!("{}: {}\n", fact.name, fact.value);
    }
    text += &format!("{}\n", report.environment);
    for warning in &report.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}
