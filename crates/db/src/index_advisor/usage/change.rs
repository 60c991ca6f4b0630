//! INSERT, UPDATE and DELETE: by what they find their rows.

use std::collections::BTreeSet;

use sqlparser::ast::{
    AssignmentTarget, Delete, FromTable, Insert, SetExpr, TableObject, TableWithJoins, Update,
    UpdateTableFromKind,
};

use super::{
    Key, Kind, Op,
    block::Walker,
    scope::{Scope, Source, parts},
};

impl Walker<'_> {
    pub(super) fn insert(&mut self, insert: &Insert) -> Result<Kind, String> {
        let TableObject::TableName(name) = &insert.table else {
            return Err("it inserts into something that is not a table".to_owned());
        };
        let (schema, table) = parts(name);
        let found = self.schema.table(schema.as_deref(), &table);
        let table = found.ok_or_else(|| format!("there is no table {name} here"))?;
        let rows = match insert.source.as_ref().map(|source| &*source.body) {
            Some(SetExpr::Values(values)) => values.rows.len(),
            _ => 1,
        };
        if let Some(source) = &insert.source {
            self.query(source, None);
        }
        Ok(Kind::Insert { table, rows })
    }

    pub(super) fn update(&mut self, update: &Update) -> Result<Kind, String> {
        let mut scope = Scope::within(None);
        let target = self.target(std::slice::from_ref(&update.table), &mut scope)?;
        if let Some(UpdateTableFromKind::BeforeSet(from) | UpdateTableFromKind::AfterSet(from)) = &update.from
        {
            self.relations(from, &mut scope);
        }
        let columns = self.assignments(update, target, &scope);
        self.filter(update.selection.as_ref(), &scope);
        // A row that is rewritten is read whole.
        self.whole_row(target);
        Ok(Kind::Update { table: self.uses[target].table, columns })
    }

    pub(super) fn delete(&mut self, delete: &Delete) -> Result<Kind, String> {
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let mut scope = Scope::within(None);
        let target = self.target(from, &mut scope)?;
        self.relations(delete.using.as_deref().unwrap_or_default(), &mut scope);
        self.filter(delete.selection.as_ref(), &scope);
        self.whole_row(target);
        Ok(Kind::Delete { table: self.uses[target].table })
    }

    /// The use of the table that is changed.
    fn target(&mut self, tables: &[TableWithJoins], scope: &mut Scope) -> Result<usize, String> {
        self.relations(tables, scope);
        match scope.relations.first() {
            Some((_, Source::Table(target))) => Ok(*target),
            _ => Err("it changes something that is not a table of this database".to_owned()),
        }
    }

    fn assignments(&mut self, update: &Update, target: usize, scope: &Scope) -> BTreeSet<usize> {
        let mut columns = BTreeSet::new();
        for assignment in &update.assignments {
            let names = match &assignment.target {
                AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
                AssignmentTarget::Tuple(names) => names,
            };
            for name in names {
                if let Some(column) = self.schema.column(self.uses[target].table, &parts(name).1) {
                    columns.insert(column);
                    self.operand(&assignment.value, target, &Key::Column(column), Op::Equal, scope);
                }
            }
            self.read(&assignment.value, scope);
        }
        columns
    }
}
