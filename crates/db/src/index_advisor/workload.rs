//! The statements that indexes are to serve, and how often each is called.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sqlparser::{
    dialect::GenericDialect,
    tokenizer::{Token, Tokenizer, Whitespace},
};

/// Statements with their frequencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// The statements.
    pub statements: Vec<WorkloadStatement>,
}

/// A statement and how often it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadStatement {
    /// The text; its values may be literals, or the placeholders `$1` or `?`.
    pub sql: String,
    /// How often it was called: its weight.
    pub calls: f64,
    /// How long a call took on average, where that is known.
    pub mean_ms: Option<f64>,
}

impl Workload {
    /// The statements of a file, separated by semicolons, without their comments; one that stands there several times
    /// counts as called that often.
    ///
    /// ```
    /// use greenwave_db::index_advisor::Workload;
    ///
    /// let workload = Workload::from_sql("SELECT 1; -- one; two\nSELECT ';'; SELECT 1;");
    /// let calls: Vec<_> = workload.statements.iter().map(|one| (one.sql.as_str(), one.calls)).collect();
    /// assert_eq!(calls, [("SELECT 1", 2.0), ("SELECT ';'", 1.0)]);
    /// ```
    pub fn from_sql(text: &str) -> Self {
        let mut workload = Self::default();
        let mut places: HashMap<String, usize> = HashMap::new();
        for sql in split(text).iter().map(|sql| sql.trim()).filter(|sql| !sql.is_empty()) {
            match places.get(sql) {
                Some(place) => workload.statements[*place].calls += 1.0,
                None => {
                    let sql = sql.to_owned();
                    places.insert(sql.clone(), workload.statements.len());
                    workload.statements.push(WorkloadStatement { sql, calls: 1.0, mean_ms: None });
                }
            }
        }
        workload
    }
}

/// The text between semicolons, but for those in strings, names and comments.
fn split(text: &str) -> Vec<String> {
    let tokens = Tokenizer::new(&GenericDialect {}, text).with_unescape(false).tokenize();
    let Ok(tokens) = tokens else { return text.split(';').map(str::to_owned).collect() };
    let mut statements = vec![String::new()];
    for token in &tokens {
        match (token, statements.last_mut()) {
            (Token::SemiColon, _) => statements.push(String::new()),
            (Token::Whitespace(Whitespace::SingleLineComment { .. }), Some(last)) => last.push('\n'),
            (Token::Whitespace(Whitespace::MultiLineComment(_)), Some(last)) => last.push(' '),
            (token, Some(last)) => last.push_str(&token.to_string()),
            (_, None) => {}
        }
    }
    statements
}
