//! The tables and indexes of a SQLite database, read from it.

use rusqlite::{Connection, Result, Row};
use sqlparser::{ast::Statement, dialect::SQLiteDialect, parser::Parser};

use crate::index_advisor::usage;

/// What stands in the schema, in the order in which it was created.
pub(super) struct Schema {
    pub(super) tables: Vec<Table>,
    pub(super) indexes: Vec<Index>,
    /// The views' names, and the statements that make them.
    pub(super) views: Vec<(String, String)>,
}

/// A table; not a virtual one, nor one of those in which a virtual one keeps its rows.
pub(super) struct Table {
    pub(super) name: String,
    /// The statement that makes it.
    pub(super) sql: String,
    pub(super) without_rowid: bool,
    pub(super) columns: Vec<Column>,
    pub(super) foreign_keys: Vec<ForeignKey>,
}

pub(super) struct Column {
    pub(super) name: String,
    /// Its values are computed.
    pub(super) generated: bool,
    /// Its place in the primary key, from 1; 0 outside.
    pub(super) primary_key: u32,
    declared: String,
}

pub(super) struct ForeignKey {
    pub(super) columns: Vec<String>,
    pub(super) references: String,
}

/// An index, or the one that SQLite made for a constraint.
pub(super) struct Index {
    pub(super) name: String,
    pub(super) table: String,
    /// The statement that makes it; none for a constraint's.
    pub(super) sql: Option<String>,
    pub(super) unique: bool,
    pub(super) keys: Vec<Key>,
    /// The condition of a partial index.
    pub(super) condition: Option<String>,
}

/// A part of an index's key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The column's name, or the expression as SQL.
    pub(super) expression: String,
    pub(super) is_column: bool,
    pub(super) descending: bool,
    /// In upper case.
    pub(super) collation: String,
}

impl Schema {
    pub(super) fn read(connection: &Connection) -> Result<Self> {
        let mut tables = connection.prepare(
            "SELECT l.name, s.sql, l.wr FROM pragma_table_list l JOIN sqlite_schema s ON s.name = l.name AND s.type = 'table' \
             WHERE l.schema = 'main' AND l.type = 'table' AND l.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY s.rowid",
        )?;
        let row = |row: &Row<'_>| {
            let name: String = row.get(0)?;
            Ok(Table {
                columns: columns(connection, &name)?,
                foreign_keys: foreign_keys(connection, &name)?,
                sql: row.get(1)?,
                without_rowid: row.get(2)?,
                name,
            })
        };
        let tables: Vec<Table> = tables.query_map((), row)?.collect::<Result<_>>()?;
        let mut indexes = Vec::new();
        for table in &tables {
            indexes.extend(read_indexes(connection, &table.name)?);
        }
        let mut views =
            connection.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'view' ORDER BY rowid")?;
        let views = views.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
        Ok(Self { tables, indexes, views })
    }

    pub(super) fn indexes_of<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a Index> {
        self.indexes.iter().filter(move |index| index.table.eq_ignore_ascii_case(table))
    }
}

impl usage::Schema for Schema {
    fn table(&self, schema: Option<&str>, name: &str) -> Option<usize> {
        let main = schema.is_none_or(|schema| schema.eq_ignore_ascii_case("main"));
        self.tables.iter().position(|table| main && table.name.eq_ignore_ascii_case(name))
    }

    fn column(&self, table: usize, name: &str) -> Option<usize> {
        self.tables.get(table)?.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    fn columns(&self, table: usize) -> Vec<String> {
        let table = self.tables.get(table);
        table
            .map(|table| table.columns.iter().map(|column| column.name.clone()).collect())
            .unwrap_or_default()
    }

    fn view(&self, _schema: Option<&str>, name: &str) -> Option<String> {
        let (_, sql) = self.views.iter().find(|(view, _)| view.eq_ignore_ascii_case(name))?;
        match Parser::parse_sql(&SQLiteDialect {}, sql).ok()?.pop()? {
            Statement::CreateView(view) => Some(view.query.to_string()),
            _ => None,
        }
    }
}

impl Table {
    /// The column that is the rowid, which needs no index.
    pub(super) fn rowid_column(&self) -> Option<&str> {
        let mut key = self.columns.iter().filter(|column| column.primary_key > 0);
        match (key.next(), key.next()) {
            (Some(only), None) if !self.without_rowid && only.declared.eq_ignore_ascii_case("integer") => {
                Some(&only.name)
            }
            _ => None,
        }
    }

    /// A name for the rowid; none if there is no rowid, or a column bears each of its names.
    pub(super) fn rowid(&self) -> Option<&str> {
        let free = |name: &&str| !self.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
        let names = || ["rowid", "_rowid_", "oid"].into_iter().find(free);
        if self.without_rowid { None } else { self.rowid_column().or_else(names) }
    }

    /// The columns of the primary key in its order.
    pub(super) fn primary_key(&self) -> Vec<&str> {
        let mut key: Vec<&Column> = self.columns.iter().filter(|column| column.primary_key > 0).collect();
        key.sort_by_key(|column| column.primary_key);
        key.into_iter().map(|column| column.name.as_str()).collect()
    }
}

impl Key {
    /// Whether entries stand in the same order, but for the direction.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.expression.eq_ignore_ascii_case(&other.expression) && self.collation == other.collation
    }

    /// The expression as SQL.
    pub(super) fn sql(&self) -> String {
        if self.is_column { quoted(&self.expression) } else { self.expression.clone() }
    }
}

/// SQLite's keywords: some of them may stand bare, depending on its version and on the place.
const KEYWORDS: &str = "\
    abort action add after all alter always analyze and as asc attach autoincrement before begin between \
    by cascade case cast check collate column commit conflict constraint create cross current \
    current_date current_time current_timestamp database default deferrable deferred delete desc detach \
    distinct do drop each else end escape except exclude exclusive exists explain fail filter first \
    following for foreign from full generated glob group groups having if ignore immediate in index \
    indexed initially inner insert instead intersect into is isnull join key last left like limit match \
    materialized natural no not nothing notnull null nulls of offset on or order others outer over \
    partition plan pragma preceding primary query raise range recursive references regexp reindex \
    release rename replace restrict returning right rollback row rows savepoint select set table temp \
    temporary then ties to transaction trigger unbounded union unique update using vacuum values view \
    virtual when where window with within without";

/// An identifier as it may stand in any statement: in quotes where it needs them.
pub(super) fn identifier(name: &str) -> String {
    let mut characters = name.chars();
    let plain = characters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain && !KEYWORDS.split(' ').any(|keyword| keyword == name) { name.to_owned() } else { quoted(name) }
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn columns(connection: &Connection, table: &str) -> Result<Vec<Column>> {
    let mut columns = connection.prepare("SELECT name, hidden, pk, type FROM pragma_table_xinfo(?1)")?;
    let column = |row: &Row<'_>| {
        let hidden: i64 = row.get(1)?;
        Ok(Column {
            name: row.get(0)?,
            generated: hidden > 1,
            primary_key: row.get(2)?,
            declared: row.get(3)?,
        })
    };
    columns.query_map([table], column)?.collect()
}

fn foreign_keys(connection: &Connection, table: &str) -> Result<Vec<ForeignKey>> {
    let mut rows = connection
        .prepare("SELECT id, \"table\", \"from\" FROM pragma_foreign_key_list(?1) ORDER BY id, seq")?;
    let rows = rows.query_map([table], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut keys: Vec<(i64, ForeignKey)> = Vec::new();
    for row in rows {
        let (id, references, column): (i64, String, String) = row?;
        match keys.last_mut() {
            Some((last, key)) if *last == id => key.columns.push(column),
            _ => keys.push((id, ForeignKey { columns: vec![column], references })),
        }
    }
    Ok(keys.into_iter().map(|(_, key)| key).collect())
}

fn read_indexes(connection: &Connection, table: &str) -> Result<Vec<Index>> {
    let mut indexes = connection.prepare(
        "SELECT l.name, s.sql, l.\"unique\" FROM pragma_index_list(?1) l JOIN sqlite_schema s ON s.name = l.name \
         AND s.type = 'index' ORDER BY s.rowid",
    )?;
    let row = |row: &Row<'_>| {
        let name: String = row.get(0)?;
        let sql: Option<String> = row.get(1)?;
        let parsed = sql.as_deref().and_then(parse);
        let (expressions, condition) = parsed.unwrap_or_default();
        let keys = keys(connection, &name, &expressions)?;
        Ok(Index { name, table: table.to_owned(), sql, unique: row.get(2)?, keys, condition })
    };
    indexes.query_map([table], row)?.collect()
}

fn keys(connection: &Connection, index: &str, expressions: &[String]) -> Result<Vec<Key>> {
    let mut keys = connection
        .prepare("SELECT name, \"desc\", coll FROM pragma_index_xinfo(?1) WHERE key ORDER BY seqno")?;
    let mut place = expressions.iter();
    let key = |row: &Row<'_>| {
        let column: Option<String> = row.get(0)?;
        let collation: Option<String> = row.get(2)?;
        let expression = place.next();
        Ok(Key {
            is_column: column.is_some(),
            expression: column.or_else(|| expression.cloned()).unwrap_or_default(),
            descending: row.get(1)?,
            collation: collation.unwrap_or_default().to_ascii_uppercase(),
        })
    };
    keys.query_map([index], key)?.collect()
}

/// The expressions of an index's key, and its condition.
fn parse(sql: &str) -> Option<(Vec<String>, Option<String>)> {
    let statements = Parser::parse_sql(&SQLiteDialect {}, sql).ok()?;
    let Some(Statement::CreateIndex(index)) = statements.into_iter().next() else { return None };
    let expressions = index.columns.iter().map(|column| column.column.expr.to_string()).collect();
    Some((expressions, index.predicate.map(|condition| condition.to_string())))
}
