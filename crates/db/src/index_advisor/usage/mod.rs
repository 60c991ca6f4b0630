//! What a statement asks of each table: the part of index advice that is the same for every database.
//!
//! A statement is parsed once, into one [`TableUse`] for each table of each of its query blocks. What is found here
//! is generous: an index that a use suggests is only a candidate, and the database's planner judges it.

mod block;
pub(crate) mod candidate;
mod change;
mod from;
mod key;
pub(crate) mod parameters;
mod predicate;
mod scope;

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::{
    dialect::Dialect,
    parser::Parser,
    tokenizer::{Token, Tokenizer},
};

/// Statements with more operators are not judged: their syntax tree is as deep as they have operators in a row, and
/// what walks it recurses.
const MAX_OPERATORS: usize = 500;

/// The tables that exist, by number.
pub(crate) trait Schema {
    /// The table of that name.
    fn table(&self, schema: Option<&str>, name: &str) -> Option<usize>;
    /// The table's column of that name.
    fn column(&self, table: usize, name: &str) -> Option<usize>;
    /// The table's columns.
    fn columns(&self, table: usize) -> Vec<String>;
    /// The query behind the view of that name.
    fn view(&self, schema: Option<&str>, name: &str) -> Option<String>;
}

/// What an index could have as a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Column(usize),
    /// Its text, without the table's name, and its columns.
    Expression(String, BTreeSet<usize>),
}

impl Key {
    pub(crate) fn columns(&self) -> BTreeSet<usize> {
        match self {
            Self::Column(column) => BTreeSet::from([*column]),
            Self::Expression(_, columns) => columns.clone(),
        }
    }
}

/// How a key is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    Equal,
    /// Equal to one of several.
    In,
    IsNull,
    /// Greater.
    Lower,
    /// Less.
    Upper,
    /// `LIKE 'x%'`, or `LIKE` a parameter.
    Prefix,
    /// `LIKE '%x%'`, `ILIKE`, a regular expression.
    Search,
    /// `@>`, `&&`, `@@`: what an inverted index answers.
    Contains,
    /// `?`: whether a document has a key.
    HasKey,
    /// Anything else, which an index cannot look up.
    Other,
}

/// What a key is compared with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operand {
    Literal(String),
    Parameter(String),
    /// A column of another table.
    Join,
    Other,
}

/// A condition that every row of the block meets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Predicate {
    pub(crate) key: Key,
    pub(crate) op: Op,
    pub(crate) operand: Operand,
    /// Its text, where it holds only columns and literals: what a partial index could be restricted to.
    pub(crate) constant: Option<String>,
}

/// A part of an order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey {
    pub(crate) key: Key,
    pub(crate) descending: bool,
    pub(crate) nulls_first: Option<bool>,
}

/// What a query block asks of one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableUse {
    pub(crate) table: usize,
    pub(crate) predicates: Vec<Predicate>,
    /// The conditions of each side of an `OR`.
    pub(crate) arms: Vec<Vec<Predicate>>,
    /// The leading part of the wanted order that is this table's.
    pub(crate) order: Vec<OrderKey>,
    pub(crate) group: Vec<Key>,
    /// Whether only the first few rows of the order are wanted.
    pub(crate) limited: bool,
    /// The columns that are read.
    pub(crate) columns: BTreeSet<usize>,
}

/// What a placeholder stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parameter {
    /// A number of rows: of `LIMIT`.
    Limit,
    /// A number of rows: of `OFFSET`.
    Offset,
    /// A value that is compared with the key of a use.
    Compared { table_use: usize, key: Key, op: Op },
}

/// What a statement does to the rows it finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Insert { table: usize, rows: usize },
    Update { table: usize, columns: BTreeSet<usize> },
    Delete { table: usize },
}

/// A statement that was understood.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) kind: Kind,
    /// Whether it changes nothing, not even in a WITH.
    pub(crate) only_reads: bool,
    pub(crate) uses: Vec<TableUse>,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    /// The functions that it and its views call, as the catalog names them, without their schemas.
    pub(crate) functions: BTreeSet<String>,
    /// The statement without `FOR UPDATE`, where it has that.
    pub(crate) unlocked: Option<String>,
}

impl Parsed {
    /// Understands a statement, or says why not.
    pub(crate) fn new(sql: &str, dialect: &dyn Dialect, schema: &dyn Schema) -> Result<Self, String> {
        let tokens = Tokenizer::new(dialect, sql).tokenize().map_err(|error| error.to_string())?;
        let operators = tokens.iter().filter(|token| is_operator(token)).count();
        if operators > MAX_OPERATORS {
            return Err(format!("it has more than {MAX_OPERATORS} operators"));
        }
        let parsed = Parser::new(dialect).with_tokens(tokens).parse_statements();
        let mut statements = parsed.map_err(|error| error.to_string())?;
        let Some(statement) = statements.pop() else { return Err("it is empty".to_owned()) };
        if !statements.is_empty() {
            return Err("it is several statements".to_owned());
        }
        let parsed = block::Walker::new(schema).statement(statement)?;
        if parsed.uses.is_empty() && parsed.kind == Kind::Read {
            return Err("it reads no table of this database".to_owned());
        }
        Ok(parsed)
    }
}

/// The functions that an expression calls; `None` where that is not known.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
pub(crate) fn functions(expression: &str, dialect: &dyn Dialect) -> Option<BTreeSet<String>> {
    let mut parser = Parser::new(dialect).try_with_sql(expression).ok()?;
    Some(scope::Calls::of(&parser.parse_expr().ok()?).functions)
}

/// Whether the token may deepen the syntax tree without a bracket, for which the parser has a limit.
fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            let keyword = ["and", "or", "not", "union", "intersect", "except", "join", "is", "collate"];
            word.quote_style.is_none()
                && keyword.iter().any(|keyword| word.value.eq_ignore_ascii_case(keyword))
        }
        Token::Whitespace(_) | Token::Comma | Token::LParen | Token::RParen | Token::Period => false,
        Token::Number(..) | Token::Placeholder(_) | Token::SingleQuotedString(_) => false,
        _ => true,
    }
}
