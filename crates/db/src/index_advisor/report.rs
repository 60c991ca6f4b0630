//! Advice as text: for a terminal, and as a migration.

use std::fmt;

use super::{Advice, Effect, Finding, Unit};

/// A statement is shown up to this many characters.
const MAX_SHOWN: usize = 100;
/// Of an index, this many statements are shown.
const MAX_EFFECTS: usize = 5;

const HEADER: &str = "\
-- Indexes that Greenwave's advisor suggests. Read them before you run them.
--
-- CREATE INDEX CONCURRENTLY lets writes go on, and cannot run inside a transaction: switch that off for this file
-- (sqlx: `-- no-transaction` as the file's first line; psql does without). If one fails it leaves an invalid index
-- behind: drop that with DROP INDEX CONCURRENTLY, and create it again.
";

impl Advice {
    /// A migration file that creates the indexes: a comment on how to run it, and a statement an index.
    pub fn migration(&self) -> String {
        let concurrently = self.indexes.iter().any(|index| index.create.contains(" CONCURRENTLY "));
        let mut text = String::new();
        if concurrently {
            // sqlx looks for this at the very beginning.
            text.push_str("-- no-transaction\n");
            text.push_str(HEADER);
        }
        for index in &self.indexes {
            text.push('\n');
            for effect in index.effects.iter().take(MAX_EFFECTS) {
                text.push_str(&format!("-- {}: {}\n", change(effect), short(&effect.sql)));
            }
            text.push_str(&format!("{};\n", index.create));
        }
        text
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.indexes.is_empty() {
            writeln!(f, "No index would serve these statements better than those that exist.")?;
        }
        for (number, index) in self.indexes.iter().enumerate() {
            writeln!(f, "{}. {};", number + 1, index.create)?;
            writeln!(f, "   {}; an insert takes {:.2} times as long", size(index.bytes), index.write_factor)?;
            for effect in index.effects.iter().take(MAX_EFFECTS) {
                writeln!(f, "   {}, {} calls: {}", change(effect), effect.calls.round(), short(&effect.sql))?;
            }
            if let Some(more) = index.effects.len().checked_sub(MAX_EFFECTS).filter(|more| *more > 0) {
                writeln!(f, "   and {more} more statements")?;
            }
        }
        if !self.findings.is_empty() {
            writeln!(f, "\nWhat exists:")?;
        }
        for finding in &self.findings {
            writeln!(f, "- {finding}")?;
        }
        if !self.skipped.is_empty() {
            writeln!(f, "\nNot judged:")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "- {}: {}", skipped.why, short(&skipped.sql))?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnusedIndex { index, table, bytes, since } => {
                write!(f, "{index} on {table} ({}) has not been used", size(*bytes))?;
                match since {
                    Some(day) => {
                        write!(f, " since {day}; look at the replicas' statistics too before it goes")
                    }
                    None => write!(f, "; look at the replicas' statistics too before it goes"),
                }
            }
            Self::DuplicateIndex { index, table, covered_by, bytes } => {
                write!(f, "{index} on {table} ({}) does nothing that {covered_by} does not", size(*bytes))
            }
            Self::ForeignKeyWithoutIndex { constraint, table, create } => {
                write!(f, "{constraint}: a delete in the referenced table reads all of {table}: {create}")
            }
            Self::SequentialScans { table, scans, rows } => {
                write!(f, "{table}, {rows} rows, was read from end to end {scans} times")
            }
            Self::BloatedIndex { index, table, bytes, needed_bytes } => write!(
                f,
                "{index} on {table} takes {}, its entries need {}: REINDEX INDEX CONCURRENTLY",
                size(*bytes),
                size(*needed_bytes)
            ),
            Self::InvalidIndex { index, table } => {
                write!(f, "{index} on {table} is invalid: it costs writes and serves nobody; drop it")
            }
        }
    }
}

fn change(effect: &Effect) -> String {
    let unit = match effect.unit {
        Unit::Cost => "cost",
        Unit::Milliseconds => "ms",
        Unit::Rows => "rows read",
    };
    format!("{} → {} {unit}", number(effect.before), number(effect.after))
}

/// Three digits are enough.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes / 1024.0 {
        kb if kb < 1024.0 => format!("{} kB", number(kb)),
        kb if kb < 1024.0 * 1024.0 => format!("{} MB", number(kb / 1024.0)),
        kb => format!("{} GB", number(kb / 1024.0 / 1024.0)),
    }
}

/// A statement on one line.
fn short(sql: &str) -> String {
    let line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
