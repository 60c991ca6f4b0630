//! What a line of a plan says of a loop.

/// A loop over a table or over what a subquery gave.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Access<'p> {
    pub(super) name: &'p str,
    /// Whether it looks rows up, or reads all.
    pub(super) search: bool,
    pub(super) by: By<'p>,
    /// Whether the index alone answers.
    pub(super) covering: bool,
    /// Parts of the key that are skipped: for each of their values the rest is looked up.
    pub(super) skipped: usize,
    /// Parts of the key that are equal to something.
    pub(super) equal: usize,
    /// Whether the next part has a bound.
    pub(super) range: bool,
    /// The conditions that are looked up.
    terms: &'p str,
}

#[derive(Debug, Default, PartialEq)]
pub(super) enum By<'p> {
    #[default]
    Table,
    /// The rowid, or the key of a table that has none.
    PrimaryKey,
    Index(&'p str),
    /// An index that SQLite makes for this one statement.
    Automatic,
}

impl<'p> Access<'p> {
    /// Reads `SEARCH o USING COVERING INDEX i (a=? AND b>?)` and its like; none if it is no loop.
    pub(super) fn parse(detail: &'p str) -> Option<Self> {
        let (search, rest) = match detail.split_once(' ')? {
            ("SEARCH", rest) => (true, rest),
            ("SCAN", rest) => (false, rest),
            _ => return None,
        };
        let (name, how) = rest.split_once(" USING ").unwrap_or((rest, ""));
        let name = name.strip_suffix(" EXISTS").unwrap_or(name);
        let how = how.strip_suffix(" LEFT-JOIN").unwrap_or(how);
        let (how, terms) = how.split_once(" (").unwrap_or((how, ""));
        let terms = terms.strip_suffix(')').unwrap_or(terms);
        let by = match how.split_once("INDEX ") {
            _ if how.starts_with("AUTOMATIC") => By::Automatic,
            Some((_, index)) => By::Index(index),
            None if how.contains("PRIMARY KEY") => By::PrimaryKey,
            None => By::Table,
        };
        let mut access =
            Self { name, search, by, covering: how.contains("COVERING"), terms, ..Self::default() };
        for term in terms.split(" AND ").filter(|term| !term.is_empty()) {
            if term.starts_with("ANY(") {
                access.skipped += 1;
            } else if term.contains(['<', '>']) && !term.starts_with("<expr>=") {
                access.range = true;
            } else {
                access.equal += 1;
            }
        }
        Some(access)
    }

    /// The columns that an automatic index is made of.
    pub(super) fn columns(&self) -> impl Iterator<Item = &'p str> {
        self.terms.split(" AND ").filter_map(|term| term.split_once('=')).map(|(column, _)| column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_read_as_sqlite_writes_them() {
        let plain = Access { name: "o", ..Access::default() };
        assert_eq!(Access::parse("SCAN o"), Some(plain));
        let skipping = Access::parse("SEARCH x USING INDEX i (ANY(a) AND b=? AND c>? AND c<?)").unwrap();
        assert_eq!((skipping.skipped, skipping.equal, skipping.range), (1, 1, true));
        assert_eq!((skipping.by, skipping.search), (By::Index("i"), true));
        let row_value = Access::parse("SEARCH o USING COVERING INDEX i (a=? AND (b,id)>(?,?))").unwrap();
        assert_eq!((row_value.equal, row_value.range, row_value.covering), (1, true, true));
        let expression = Access::parse("SEARCH main.o USING INDEX i (<expr>=?) LEFT-JOIN").unwrap();
        assert_eq!((expression.name, expression.equal, expression.range), ("main.o", 1, false));
        let bound = Access::parse("SEARCH o USING INDEX i (<expr>>? AND <expr><?)").unwrap();
        assert_eq!((bound.equal, bound.range), (0, true));
        let automatic =
            Access::parse("SEARCH o EXISTS USING AUTOMATIC PARTIAL COVERING INDEX (total=?)").unwrap();
        assert_eq!((automatic.name, &automatic.by), ("o", &By::Automatic));
        assert_eq!(automatic.columns().collect::<Vec<_>>(), ["total"]);
        let by_rowid = Access::parse("SEARCH o USING INTEGER PRIMARY KEY (rowid=?)").unwrap();
        assert_eq!((by_rowid.by, by_rowid.equal), (By::PrimaryKey, 1));
        assert_eq!(Access::parse("USE TEMP B-TREE FOR ORDER BY"), None);
    }
}
