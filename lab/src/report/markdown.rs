use super::{Report, figures, table};

pub(super) fn render(report: &Report, plot: Option<&str>) -> String {
    let mut text = format!("# {}\n\n{}\n\n**{}.**\n\n", report.title, report.question, sentence(report));
    text += &format!(
        "| | before: {} | after: {} | after ÷ before |\n|---|---:|---:|---:|\n",
        cell(&report.before.label),
        cell(&report.after.label)
    );
    for row in table::rows(report) {
        text += &format!("| {} |\n", row.map(|value| cell(&value)).join(" | ").trim_end());
    }
    text += &format!("\n{}\n\n", table::method(report));
    if let Some(plot) = plot {
        text += &format!("![Each round as a point, medians as lines]({plot})\n\n");
    }
    text += &format!(
        "## Rounds\n\n| round | before, {0} a second | p99, ms | after, {0} a second | p99, ms |\n",
        cell(&report.unit)
    );
    text += "|---:|---:|---:|---:|---:|\n";
    for (number, (before, after)) in report.before.rounds.iter().zip(&report.after.rounds).enumerate() {
        text += &format!(
            "| {} | {} | {} | {} | {} |\n",
            number + 1,
            figures::figure(before.per_second),
            figures::maybe(before.p99_ms),
            figures::figure(after.per_second),
            figures::maybe(after.p99_ms)
        );
    }
    text += &format!("\n## Circumstances\n\n- {}\n", table::drive(report));
    for fact in &report.facts {
        text += &format!("- {}: {}\n", fact.name, fact.value);
    }
    text += &format!("- {}\n", report.environment);
    for warning in &report.warnings {
        text += &format!("- warning: {warning}\n");
    }
    text
}

/// The verdict with a capital, on one line.
fn sentence(report: &Report) -> String {
    let text = report.verdict.text.replace(['\n', '\r'], " ");
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A text that stays within its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
