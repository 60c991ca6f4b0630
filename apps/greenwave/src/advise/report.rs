//! Advice as text and as Markdown.

use std::io::{IsTerminal, stdout};

use greenwave_db::index_advisor::{Advice, Effect, IndexAdvice, Unit};

use super::{database::Database, size::shown};

/// Statements are cut to so many characters, and an index shows so many of them.
const MAX_STATEMENT: usize = 100;
const MAX_EFFECTS: usize = 5;

/// Escapes that set text off, or nothing.
#[derive(Clone, Copy, Default)]
pub(super) struct Style {
    bold: &'static str,
    dim: &'static str,
    plain: &'static str,
}

impl Style {
    pub(super) fn of_stdout() -> Style {
        let colours =
            stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if colours { Style { bold: "\x1b[1m", dim: "\x1b[2m", plain: "\x1b[0m" } } else { Style::default() }
    }
}

pub(super) fn text(advice: &Advice, database: &Database, statements: usize, style: Style) -> String {
    let Style { bold, dim, plain } = style;
    let mut text = format!("{}\n", summary(advice, database, statements));
    for (number, index) in advice.indexes.iter().enumerate() {
        text.push_str(&format!(
            "\n{}. {bold}{}{plain}\n   {dim}{}{plain}\n",
            number + 1,
            index.create,
            costs(index)
        ));
        for line in effects(index) {
            text.push_str(&format!("   {line}\n"));
        }
    }
    if !advice.findings.is_empty() {
        text.push_str(&format!("\n{bold}What is there already{plain}\n"));
        for finding in &advice.findings {
            text.push_str(&format!("  {finding}\n"));
        }
    }
    if !advice.skipped.is_empty() {
        let count = counted(advice.skipped.len(), "statement", "statements");
        text.push_str(&format!("\n{bold}{count} not judged{plain}\n"));
        for skipped in &advice.skipped {
            text.push_str(&format!(
                "  {}\n    {dim}{}{plain}\n",
                one_line(&skipped.sql),
                one_line(&skipped.why)
            ));
        }
    }
    text
}

pub(super) fn markdown(advice: &Advice, database: &Database, statements: usize) -> String {
    let mut text = format!("## Indexes\n\n{}\n", summary(advice, database, statements));
    for index in &advice.indexes {
        text.push_str(&format!(
            "\n### `{}`\n\n```sql\n{};\n```\n\n{}.\n",
            index.name,
            index.create,
            costs(index)
        ));
        if !index.effects.is_empty() {
            let unit = index.effects.first().map_or("", |effect| unit(effect.unit));
            text.push_str(&format!("\n| statement | calls | before, {unit} | after |\n|---|--:|--:|--:|\n"));
        }
        for effect in &index.effects {
            // A bar would end the cell; a backtick is left to end the code.
            let sql = one_line(&effect.sql).replace('|', "\\|").replace('`', "'");
            let [before, after, calls] = [effect.before, effect.after, effect.calls].map(number);
            text.push_str(&format!("| `{sql}` | {calls} | {before} | {after} |\n"));
        }
    }
    if !advice.findings.is_empty() {
        text.push_str("\n## What is there already\n\n");
        for finding in &advice.findings {
            text.push_str(&format!("- {finding}\n"));
        }
    }
    if !advice.skipped.is_empty() {
        text.push_str("\n## Not judged\n\n");
        for skipped in &advice.skipped {
            text.push_str(&format!(
                "- `{}`: {}\n",
                one_line(&skipped.sql).replace('`', "'"),
                one_line(&skipped.why)
            ));
        }
    }
    text
}

fn summary(advice: &Advice, database: &Database, statements: usize) -> String {
    let statements = counted(statements, "statement", "statements");
    match advice.indexes.len() {
        0 => format!("{statements} of {database}: no index would help enough"),
        count => {
            let bytes = advice.indexes.iter().map(|index| index.bytes).sum();
            let indexes = counted(count, "index would", "indexes would");
            format!("{statements} of {database}: {indexes} help, {} in all", shown(bytes))
        }
    }
}

fn costs(index: &IndexAdvice) -> String {
    format!("{}; an insert takes about {:.1} times as long", shown(index.bytes), index.write_factor)
}

/// What an index does for its statements, in columns.
fn effects(index: &IndexAdvice) -> Vec<String> {
    let Some(first) = index.effects.first() else { return Vec::new() };
    let mut rows =
        vec![["before".to_owned(), "after".to_owned(), "calls".to_owned(), "statement".to_owned()]];
    for effect in index.effects.iter().take(MAX_EFFECTS) {
        let Effect { before, after, calls, .. } = effect;
        rows.push([
            measured(*before, effect.unit),
            measured(*after, effect.unit),
            number(*calls),
            one_line(&effect.sql),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [before, after, calls] = [width(0), width(1), width(2)];
    let line = |row: &[String; 4]| {
        format!("{:>before$}  {:>after$}  {:>calls$}  {}", row[0], row[1], row[2], row[3])
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let more = index.effects.len().saturating_sub(MAX_EFFECTS);
    if more > 0 {
        lines.push(format!("and {}", counted(more, "more statement", "more statements")));
    }
    if first.unit == Unit::Cost {
        lines[0].push_str(" (before and after in the planner's cost)");
    }
    lines
}

fn measured(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Cost => number(value),
        Unit::Milliseconds if value < 10.0 => format!("{value:.2} ms"),
        Unit::Milliseconds => format!("{} ms", number(value)),
        Unit::Rows => format!("{} rows", number(value)),
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Cost => "planner's cost",
        Unit::Milliseconds => "ms",
        Unit::Rows => "rows read",
    }
}

/// A whole number in groups of three digits; a small one with two places.
fn number(value: f64) -> String {
    if value < 10.0 && value.fract() != 0.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// A text on one line, cut where it is long.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_STATEMENT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
