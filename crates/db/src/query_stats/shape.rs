//! What is left of a statement without its values: its shape, and the fingerprint of that.

use std::collections::HashSet;

use super::{
    Dialect,
    lexer::{Kind, Lexer, Token},
};

/// Lists inside of more lists than these are left as they are.
const MAX_NESTING: usize = 32;
/// Words after which a sign belongs to the number behind it, and not between two operands.
const BEFORE_OPERAND: [&str; 31] = [
    "all",
    "and",
    "any",
    "as",
    "between",
    "by",
    "case",
    "distinct",
    "else",
    "from",
    "having",
    "ilike",
    "in",
    "is",
    "like",
    "limit",
    "not",
    "offset",
    "on",
    "or",
    "returning",
    "select",
    "set",
    "some",
    "then",
    "union",
    "using",
    "values",
    "when",
    "where",
    "return",
];
/// Types whose literals are a word before a string.
const TYPES: [&str; 6] = ["date", "interval", "time", "timestamp", "timestamptz", "timetz"];
/// Words after which double quotes make a string, on SQLite.
const BEFORE_STRING: [&str; 4] = ["glob", "like", "match", "regexp"];
/// What ends a list of columns to order or group by.
const AFTER_POSITIONS: [&str; 9] =
    ["except", "fetch", "for", "having", "intersect", "limit", "offset", "union", "window"];

/// A statement without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// 16 hexadecimal digits, the same for statements that differ only in values, in the length of their lists, in
    /// letter case, white space and comments; and the same in every process and version of this crate's 0.1.
    pub fingerprint: String,
    /// The statement, with a placeholder for each value, one element for each list, and no comments. On PostgreSQL
    /// the placeholders are numbered anew, so that it can be prepared.
    pub text: String,
    /// Whether it inserts rows.
    pub(super) inserts: bool,
    /// Whether it does nothing but read.
    pub(super) reads: bool,
}

impl Shape {
    /// The shape of a statement.
    ///
    /// ```
    /// use greenwave_db::query_stats::{Dialect, Shape};
    ///
    /// let a = Shape::of("SELECT * FROM users WHERE id IN (1, 2, 3)", Dialect::Postgres);
    /// let b = Shape::of("select * from users where id in ($1)", Dialect::Postgres);
    /// assert_eq!(a.fingerprint, b.fingerprint);
    /// assert_eq!(a.text, "SELECT * FROM users WHERE id IN ($1)");
    /// ```
    pub fn of(text: &str, dialect: Dialect) -> Self {
        let mut builder = Builder { out: Vec::new(), frames: vec![Frame::new(Group::Whole, 0)], dialect };
        let mut tokens = Lexer::new(text, dialect).peekable();
        while let Some(token) = tokens.next() {
            let qualifies = tokens.peek().is_some_and(|next| next.is("."));
            if !qualifies && builder.is_string(&token) {
                builder.push(Token { kind: Kind::Text, ..token });
            } else {
                builder.push(token);
            }
        }
        let out = builder.finish();
        let is_any = |words: &[&str]| out.iter().any(|token| token.is_any(words));
        let starts =
            |words: &[&str]| out.iter().find(|token| !token.is("(")).is_some_and(|t| t.is_any(words));
        Self {
            fingerprint: format!("{:016x}", hash(&out)),
            inserts: starts(&["insert", "replace"]),
            reads: starts(&["select", "values", "table", "with"])
                && !is_any(&["insert", "update", "delete", "merge", "into", "share"]),
            text: render(&out, dialect),
        }
    }
}

fn is_value(token: &Token<'_>) -> bool {
    matches!(token.kind, Kind::Value | Kind::Text)
}

/// FNV-1a, for it is the same everywhere and for ever.
fn hash(tokens: &[Token<'_>]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    for token in tokens {
        match token.kind {
            Kind::Value | Kind::Text => add(0xfe),
            Kind::Word => token.text.bytes().for_each(|byte| add(byte.to_ascii_lowercase())),
            _ => token.text.bytes().for_each(&mut add),
        }
        add(0xff); // No byte of UTF-8.
    }
    hash
}

fn render(tokens: &[Token<'_>], dialect: Dialect) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let (mut values, mut after_operand) = (0, false);
    for (n, token) in tokens.iter().enumerate() {
        let operand = token.kind != Kind::Sign || token.is("$");
        // What a value separated must not grow together.
        if n > 0 && (token.space || (operand && after_operand)) {
            text.push(' ');
        }
        after_operand = operand;
        match (is_value(token), dialect) {
            (false, _) => text.push_str(token.text),
            (true, Dialect::Sqlite) => text.push('?'),
            (true, Dialect::Postgres) => {
                values += 1;
                let _ = write!(text, "${values}"); // To a string: cannot fail.
            }
        }
    }
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Whole,
    /// In parentheses or brackets.
    Plain,
    /// The same, after `IN` or `ARRAY`.
    List,
    /// Rows after `VALUES`, each in parentheses.
    Rows,
}

struct Frame {
    group: Group,
    start: usize,
    /// Where its present element begins.
    element: usize,
    /// Its earlier elements, by their hashes.
    seen: HashSet<u64>,
    /// Whether numbers are positions of columns, as in `ORDER BY 1, 2`.
    positions: bool,
}

impl Frame {
    fn new(group: Group, start: usize) -> Self {
        Self { group, start, element: start, seen: HashSet::new(), positions: false }
    }
}

/// Takes tokens one by one; what it has put out is final but for the last element of each open list.
struct Builder<'a> {
    out: Vec<Token<'a>>,
    frames: Vec<Frame>,
    dialect: Dialect,
}

impl<'a> Builder<'a> {
    fn group(&self) -> Group {
        self.frames.last().map_or(Group::Whole, |frame| frame.group)
    }

    fn push(&mut self, token: Token<'a>) {
        let sign = if token.kind == Kind::Sign { token.text } else { "" };
        if self.group() == Group::Rows && !matches!(sign, "(" | ",") {
            self.close();
        }
        match sign {
            "(" | "[" => self.open(token),
            ")" | "]" => {
                if matches!(self.group(), Group::Plain | Group::List) {
                    self.close();
                }
                self.out.push(token);
            }
            "," => self.comma(token),
            _ if token.kind == Kind::Word => self.word(token),
            _ if token.kind == Kind::Digits && self.is_position() => self.out.push(token),
            _ if matches!(token.kind, Kind::Value | Kind::Text | Kind::Digits) => self.value(token),
            _ => self.out.push(token),
        }
    }

    /// Whether this is in double quotes, which on SQLite make a name or, where there is no such column, a string; and
    /// stands where a string is likelier.
    fn is_string(&self, token: &Token<'_>) -> bool {
        if self.dialect != Dialect::Sqlite || token.kind != Kind::Quoted || !token.text.starts_with('"') {
            return false;
        }
        let Some(last) = self.out.last() else { return false };
        let compares = ["=", "<", ">"].iter().any(|sign| last.is(sign));
        compares || last.is_any(&BEFORE_STRING) || ((last.is("(") || last.is(",")) && self.lists_values())
    }

    /// Whether the innermost list is of values: after `IN`, or a row after `VALUES`.
    fn lists_values(&self) -> bool {
        match &self.frames[..] {
            [.., Frame { group: Group::Rows, .. }, Frame { group: Group::Plain, .. }] => true,
            [.., Frame { group: Group::List, start, .. }] => {
                !self.out.get(*start).is_some_and(|first| first.is_any(&["select", "values", "with"]))
            }
            _ => false,
        }
    }

    fn open(&mut self, token: Token<'a>) {
        let last = self.out.last();
        let is_rows = token.is("(") && last.is_some_and(|last| last.is_word("values"));
        let is_list = last.is_some_and(|last| last.is_any(&["in", "array"]));
        let deep = self.frames.len() > MAX_NESTING;
        if is_rows && !deep {
            self.frames.push(Frame::new(Group::Rows, self.out.len()));
        }
        self.out.push(token);
        let group = if is_list && !deep { Group::List } else { Group::Plain };
        self.frames.push(Frame::new(group, self.out.len()));
    }

    fn comma(&mut self, token: Token<'a>) {
        if matches!(self.group(), Group::Rows | Group::List) {
            self.end_element();
        }
        self.out.push(token);
        let next = self.out.len();
        if let Some(frame) = self.frames.last_mut() {
            frame.element = next;
            frame.positions &= frame.group != Group::List;
        }
    }

    /// Forgets the last element of a list, with the comma before it, if the list has one like it.
    fn end_element(&mut self) {
        let Some(frame) = self.frames.last_mut() else { return };
        if !frame.seen.insert(hash(&self.out[frame.element..])) {
            self.out.truncate(frame.element - 1);
        }
    }

    fn close(&mut self) {
        if matches!(self.group(), Group::Rows | Group::List) {
            self.end_element();
        }
        self.frames.pop();
    }

    fn word(&mut self, token: Token<'a>) {
        let last = self.out.last();
        if let Some(frame) = self.frames.last_mut() {
            if token.is_word("by") && last.is_some_and(|last| last.is_any(&["order", "group"])) {
                frame.positions = true;
            } else if token.is_any(&AFTER_POSITIONS) {
                frame.positions = false;
            }
        }
        // Elsewhere it is part of the syntax, as in `IS NULL`.
        let among_values =
            last.is_some_and(|last| last.kind == Kind::Sign && !matches!(last.text, ")" | "]" | "."));
        if among_values && token.is_any(&["null", "true", "false"]) {
            self.value(token);
        } else {
            self.out.push(token);
        }
    }

    fn is_position(&self) -> bool {
        let listed = self.frames.last().is_some_and(|frame| frame.positions);
        listed && self.out.last().is_some_and(|last| last.is_word("by") || last.is(","))
    }

    fn value(&mut self, token: Token<'a>) {
        let mut space = token.space;
        let typed = match &self.out[..] {
            [.., before, last] if token.kind == Kind::Text && !before.is(":") && last.is_any(&TYPES) => {
                Some(*last)
            }
            _ => None,
        };
        if let Some(word) = typed.filter(|_| self.dialect == Dialect::Postgres) {
            self.out.pop();
            space = word.space;
        }
        while let [before @ .., sign] = &self.out[..]
            && (sign.is("-") || sign.is("+"))
            && expects_operand(before.last())
        {
            space = sign.space;
            self.out.pop();
        }
        self.out.push(Token { kind: Kind::Value, text: token.text, space });
        // `INTERVAL '1 day'` with a placeholder is no SQL, `$1::INTERVAL` is.
        if let Some(word) = typed.filter(|_| self.dialect == Dialect::Postgres) {
            let colon = Token { kind: Kind::Sign, text: ":", space: false };
            self.out.extend([colon, colon, Token { space: false, ..word }]);
        }
    }

    fn finish(mut self) -> Vec<Token<'a>> {
        while self.group() == Group::Rows {
            self.close();
        }
        while self.out.pop_if(|last| last.is(";")).is_some() {}
        self.out
    }
}

/// Whether a sign after `last` belongs to what follows it.
fn expects_operand(last: Option<&Token<'_>>) -> bool {
    last.is_none_or(|last| match last.kind {
        Kind::Sign => !matches!(last.text, ")" | "]"),
        Kind::Word => last.is_any(&BEFORE_OPERAND),
        _ => false,
    })
}
