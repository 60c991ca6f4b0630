//! Cuts a statement into tokens, as far as telling values from the rest needs.

use super::Dialect;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    /// A quoted identifier.
    Quoted,
    /// Digits alone: a value, or the position of a column.
    Digits,
    /// A string in quotes.
    Text,
    /// Any other literal, or a placeholder.
    Value,
    /// One character of an operator or of punctuation.
    Sign,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// Whether white space or a comment stands before it.
    pub(super) space: bool,
}

impl Token<'_> {
    pub(super) fn is(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    pub(super) fn is_any(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.is_word(word))
    }
}

/// What cannot be text is read as far as it goes: an open quote or comment reaches to the end.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    dialect: Dialect,
    /// Whether the last token was a name, to which a dot belongs.
    after_name: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, dialect: Dialect) -> Self {
        Self { text, at: 0, dialect, after_name: false }
    }

    fn byte(&self, ahead: usize) -> u8 {
        // A zero byte is as little part of any token as the end is.
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn starts(&self, with: &str) -> bool {
        self.text.as_bytes()[self.at..].starts_with(with.as_bytes())
    }

    fn is_postgres(&self) -> bool {
        self.dialect == Dialect::Postgres
    }

    fn is_word_byte(&self, byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 || (byte == b'$' && self.is_postgres())
    }

    fn advance_while(&mut self, is_part: impl Fn(&Self, u8) -> bool) {
        while self.at < self.text.len() && is_part(self, self.byte(0)) {
            self.at += 1;
        }
    }

    /// Past the next `end`, or to the end of the text.
    fn advance_past(&mut self, end: &str) {
        let rest = &self.text.as_bytes()[self.at..];
        let found = rest.windows(end.len()).position(|window| window == end.as_bytes());
        self.at = found.map_or(self.text.len(), |found| self.at + found + end.len());
    }

    fn skip_blank(&mut self) -> bool {
        let start = self.at;
        loop {
            match self.byte(0) {
                byte if byte.is_ascii_whitespace() || byte == 0x0b => self.at += 1,
                b'-' if self.starts("--") => self.advance_past("\n"),
                b'/' if self.starts("/*") => self.skip_comment(),
                _ => return self.at > start,
            }
        }
    }

    /// PostgreSQL's comments nest, SQLite's do not.
    fn skip_comment(&mut self) {
        if !self.is_postgres() {
            self.at += 2;
            return self.advance_past("*/");
        }
        let mut depth = 0;
        while self.at < self.text.len() {
            let (step, change) = match (self.byte(0), self.byte(1)) {
                (b'/', b'*') => (2, 1),
                (b'*', b'/') => (2, -1),
                _ => (1, 0),
            };
            self.at += step;
            depth += change;
            if depth == 0 {
                return;
            }
        }
    }

    /// From the opening quote past the closing one; twice the quote stands for itself.
    fn quoted(&mut self, quote: u8, backslashes: bool) {
        self.at += 1;
        while self.at < self.text.len() {
            let byte = self.byte(0);
            self.at += 1;
            match byte {
                b'\\' if backslashes && self.at < self.text.len() => self.at += 1,
                _ if byte != quote => {}
                _ if self.byte(0) == quote => self.at += 1,
                _ => return,
            }
        }
    }

    fn number(&mut self) -> Kind {
        let start = self.at;
        let radix = self.byte(1).to_ascii_lowercase();
        if self.byte(0) == b'0' && matches!(radix, b'x' | b'o' | b'b') && self.byte(2).is_ascii_hexdigit() {
            self.at += 2;
            self.advance_while(|_, byte| byte.is_ascii_hexdigit() || byte == b'_');
            return Kind::Value;
        }
        let digits = |_: &Self, byte: u8| byte.is_ascii_digit() || byte == b'_';
        self.advance_while(digits);
        if self.byte(0) == b'.' {
            self.at += 1;
            self.advance_while(digits);
        }
        if self.byte(0).eq_ignore_ascii_case(&b'e') {
            let signed = usize::from(matches!(self.byte(1), b'+' | b'-'));
            if self.byte(1 + signed).is_ascii_digit() {
                self.at += 1 + signed;
                self.advance_while(digits);
            }
        }
        match self.text[start..self.at].bytes().all(|byte| byte.is_ascii_digit()) {
            true => Kind::Digits,
            false => Kind::Value,
        }
    }

    /// A name or keyword, or the string of which it is the prefix, as in `E'…'`.
    fn word(&mut self) -> Kind {
        let start = self.at;
        self.advance_while(Self::is_word_byte);
        let prefix = &self.text.as_bytes()[start..self.at];
        let [letter] = prefix else { return Kind::Word };
        match (letter.to_ascii_lowercase(), self.byte(0), self.byte(1)) {
            (b'e', b'\'', _) if self.is_postgres() => self.quoted(b'\'', true),
            (b'x' | b'b' | b'n', b'\'', _) => self.quoted(b'\'', false),
            (b'u', b'&', quote @ (b'\'' | b'"')) if self.is_postgres() => {
                self.at += 1;
                self.quoted(quote, false);
                if quote == b'"' {
                    return Kind::Quoted;
                }
            }
            _ => return Kind::Word,
        }
        Kind::Text
    }

    /// After a `$`: a placeholder, a string between `$tag$`s, or nothing.
    fn dollar(&mut self) -> Kind {
        let start = self.at;
        self.at += 1;
        if self.byte(0).is_ascii_digit() {
            self.advance_while(|_, byte| byte.is_ascii_digit());
            return Kind::Value;
        }
        let is_tag = |_: &Self, byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        self.advance_while(is_tag);
        if self.byte(0) != b'$' {
            self.at = start + 1;
            return Kind::Sign;
        }
        self.at += 1;
        let tag = &self.text[start..self.at];
        self.advance_past(tag);
        Kind::Text
    }

    fn token(&mut self, space: bool) -> Kind {
        let (byte, next) = (self.byte(0), self.byte(1));
        match byte {
            b'\'' => {
                self.quoted(b'\'', false);
                Kind::Text
            }
            b'"' => {
                self.quoted(b'"', false);
                Kind::Quoted
            }
            b'$' if self.is_postgres() => self.dollar(),
            b'.' if next.is_ascii_digit() && (space || !self.after_name) => self.number(),
            _ if byte.is_ascii_digit() => self.number(),
            _ if self.is_word_byte(byte) => self.word(),
            _ if self.is_postgres() => self.sign(),
            b'`' => {
                self.quoted(b'`', false);
                Kind::Quoted
            }
            b'[' => {
                self.advance_past("]");
                Kind::Quoted
            }
            b'?' => {
                self.at += 1;
                self.advance_while(|_, byte| byte.is_ascii_digit());
                Kind::Value
            }
            b':' | b'@' | b'$' if self.is_word_byte(next) => {
                self.at += 1;
                self.advance_while(Self::is_word_byte);
                Kind::Value
            }
            _ => self.sign(),
        }
    }

    fn sign(&mut self) -> Kind {
        self.at += 1;
        Kind::Sign
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let space = self.skip_blank();
        let start = self.at;
        if start >= self.text.len() {
            return None;
        }
        let kind = self.token(space);
        // Only an escape at the end of a string may end inside a character.
        self.at = self.text.ceil_char_boundary(self.at);
        self.after_name = matches!(kind, Kind::Word | Kind::Quoted);
        Some(Token { kind, text: &self.text[start..self.at], space })
    }
}
