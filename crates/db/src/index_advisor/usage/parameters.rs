//! Placeholders, and the values in their stead.

use sqlparser::{
    dialect::Dialect,
    tokenizer::{Token, Tokenizer},
};

/// The statement with each placeholder replaced by what `value` gives for its name. All else stays as it was written.
pub(crate) fn replaced(sql: &str, dialect: &dyn Dialect, mut value: impl FnMut(&str) -> String) -> String {
    let Ok(tokens) = Tokenizer::new(dialect, sql).with_unescape(false).tokenize() else {
        return sql.to_owned();
    };
    let text = |token: &Token| match token {
        Token::Placeholder(name) => value(name),
        token => token.to_string(),
    };
    tokens.iter().map(text).collect()
}

/// The values of an `INTERVAL $1`, `DATE $1` and the like, as normalized statements have them, where only a string
/// may stand.
pub(crate) fn typed_strings(sql: &str, dialect: &dyn Dialect) -> String {
    let Ok(tokens) = Tokenizer::new(dialect, sql).with_unescape(false).tokenize() else {
        return sql.to_owned();
    };
    let mut before = None;
    let mut text = String::new();
    for token in &tokens {
        let string = match (token, before) {
            (Token::Placeholder(_), Some("interval")) => Some("'1 day'"),
            (Token::Placeholder(_), Some("date" | "timestamp" | "timestamptz")) => Some("'2000-01-01'"),
            _ => None,
        };
        text.push_str(&string.map_or_else(|| token.to_string(), str::to_owned));
        before = match token {
            Token::Whitespace(_) => before,
            Token::Word(word) if word.quote_style.is_none() => {
                ["interval", "date", "timestamp", "timestamptz"]
                    .into_iter()
                    .find(|kind| word.value.eq_ignore_ascii_case(kind))
            }
            _ => None,
        };
    }
    text
}
