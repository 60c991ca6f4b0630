//! Conditions: what of them an index could answer.

use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value, ValueWithSpan};

use super::{
    Key, Op, Operand, Parameter, Predicate,
    block::Walker,
    scope::{Mentions, Scope},
};

/// The conditions that `AND` joins.
pub(super) fn conjuncts(expr: &Expr) -> Vec<&Expr> {
    flatten(expr, &BinaryOperator::And)
}

/// The conditions that `OR` joins.
fn disjuncts(expr: &Expr) -> Vec<&Expr> {
    flatten(expr, &BinaryOperator::Or)
}

fn flatten<'e>(expr: &'e Expr, with: &BinaryOperator) -> Vec<&'e Expr> {
    let (mut flat, mut rest) = (Vec::new(), vec![expr]);
    while let Some(expr) = rest.pop() {
        match expr {
            Expr::Nested(inner) => rest.push(inner),
            Expr::BinaryOp { left, op, right } if op == with => rest.extend([&**right, &**left]),
            _ => flat.push(expr),
        }
    }
    flat
}

impl Walker<'_> {
    /// Notes a condition that all rows of the block meet.
    pub(super) fn condition(&mut self, condition: &Expr, scope: &Scope) {
        for conjunct in conjuncts(condition) {
            let arms = disjuncts(conjunct);
            if arms.len() < 2 {
                for (of, predicate) in self.predicates(conjunct, scope) {
                    self.uses[of].predicates.push(predicate);
                }
                continue;
            }
            let arms: Vec<Vec<(usize, Predicate)>> = arms
                .into_iter()
                .map(|arm| conjuncts(arm).into_iter().flat_map(|part| self.predicates(part, scope)).collect())
                .collect();
            self.alternatives(&arms);
        }
    }

    /// Notes the sides of an `OR`. What stands on every side holds for every row.
    fn alternatives(&mut self, arms: &[Vec<(usize, Predicate)>]) {
        let Some((first, others)) = arms.split_first() else { return };
        for (of, predicate) in first {
            if others.iter().all(|arm| arm.contains(&(*of, predicate.clone()))) {
                self.uses[*of].predicates.push(predicate.clone());
            }
        }
        for arm in arms {
            let mut uses: Vec<usize> = arm.iter().map(|(of, _)| *of).collect();
            uses.dedup();
            for of in uses {
                let here =
                    arm.iter().filter(|(other, _)| *other == of).map(|(_, predicate)| predicate.clone());
                self.uses[of].arms.push(here.collect());
            }
        }
    }

    /// The conditions on tables' keys that an expression without `AND` and `OR` amounts to.
    pub(super) fn predicates(&mut self, expr: &Expr, scope: &Scope) -> Vec<(usize, Predicate)> {
        match expr {
            Expr::BinaryOp { left, op, right } => self.comparison(left, op, right, expr, scope),
            Expr::Nested(inner) => self.predicates(inner, scope),
            Expr::IsNull(key) => self.one(key, Op::IsNull, Operand::Literal(String::new()), expr, scope),
            Expr::IsTrue(key) => self.one(key, Op::Equal, Operand::Literal("true".into()), expr, scope),
            Expr::IsFalse(key) => self.one(key, Op::Equal, Operand::Literal("false".into()), expr, scope),
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {
                self.one(expr, Op::Equal, Operand::Literal("true".into()), expr, scope)
            }
            Expr::UnaryOp { op: UnaryOperator::Not, expr: inner } => match &**inner {
                Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {
                    self.one(inner, Op::Equal, Operand::Literal("false".into()), expr, scope)
                }
                _ => self.one(inner, Op::Other, Operand::Other, expr, scope),
            },
            Expr::InList { expr: key, list, negated } => {
                let literal = list.iter().all(|item| Mentions::of(item).is_literal());
                let mut found =
                    self.one(key, if *negated { Op::Other } else { Op::In }, Operand::Other, expr, scope);
                for (of, predicate) in &mut found {
                    for item in list {
                        predicate.operand = self.operand(item, *of, &predicate.key, Op::Equal, scope);
                    }
                    if literal {
                        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                        predicate.operand = Operand::Literal(list.join(", "));
                    }
                }
                found
            }
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                self.compared(left, Op::In, right, expr, scope)
            }
            Expr::Between { expr: key, low, high, negated: false } => {
                let mut both = self.one(key, Op::Lower, Operand::Other, expr, scope);
                both.extend(self.one(key, Op::Upper, Operand::Other, expr, scope));
                for (of, predicate) in &mut both {
                    let bound = if predicate.op == Op::Lower { low } else { high };
                    predicate.operand = self.operand(bound, *of, &predicate.key, predicate.op, scope);
                }
                both
            }
            Expr::Like { negated: false, expr: key, pattern, .. } => {
                let op = if is_prefix(pattern) { Op::Prefix } else { Op::Search };
                self.compared(key, op, pattern, expr, scope)
            }
            Expr::ILike { negated: false, expr: key, pattern, .. } => {
                self.compared(key, Op::Search, pattern, expr, scope)
            }
            Expr::InSubquery { expr: key, .. } => self.one(key, Op::In, Operand::Join, expr, scope),
            _ => match Mentions::of(expr).columns.first() {
                Some(name) => {
                    let key = Expr::CompoundIdentifier(name.clone());
                    self.one(&key, Op::Other, Operand::Other, expr, scope)
                }
                None => Vec::new(),
            },
        }
    }

    fn comparison(
        &mut self,
        left: &Expr,
        op: &BinaryOperator,
        right: &Expr,
        whole: &Expr,
        scope: &Scope,
    ) -> Vec<(usize, Predicate)> {
        if let (Expr::Tuple(left), Expr::Tuple(right)) = (left, right) {
            return self.row(left, op, right, whole, scope);
        }
        let op_of = |swapped: bool| match op {
            BinaryOperator::Eq => Op::Equal,
            BinaryOperator::Gt | BinaryOperator::GtEq if !swapped => Op::Lower,
            BinaryOperator::Lt | BinaryOperator::LtEq if swapped => Op::Lower,
            BinaryOperator::Gt | BinaryOperator::GtEq | BinaryOperator::Lt | BinaryOperator::LtEq => {
                Op::Upper
            }
            BinaryOperator::AtArrow
            | BinaryOperator::ArrowAt
            | BinaryOperator::AtAt
            | BinaryOperator::AtQuestion
            | BinaryOperator::PGOverlap => Op::Contains,
            BinaryOperator::Question | BinaryOperator::QuestionAnd | BinaryOperator::QuestionPipe => {
                Op::HasKey
            }
            BinaryOperator::PGRegexMatch | BinaryOperator::PGRegexIMatch => Op::Search,
            BinaryOperator::PGLikeMatch | BinaryOperator::PGStartsWith => Op::Prefix,
            BinaryOperator::PGILikeMatch => Op::Search,
            _ => Op::Other,
        };
        let mut found = self.compared(left, op_of(false), right, whole, scope);
        let first = found.first().map(|(of, _)| *of);
        let mut swapped = self.compared(right, op_of(true), left, whole, scope);
        if swapped.first().is_some_and(|(of, _)| Some(*of) == first) {
            // Columns of one row, compared with each other: no index looks that up.
            swapped.clear();
            found.iter_mut().for_each(|(_, predicate)| predicate.op = Op::Other);
        }
        found.append(&mut swapped);
        found
    }

    /// `(a, b) < (1, 2)`: an order of a first, which an index on (a, b) answers.
    fn row(
        &mut self,
        left: &[Expr],
        op: &BinaryOperator,
        right: &[Expr],
        whole: &Expr,
        scope: &Scope,
    ) -> Vec<(usize, Predicate)> {
        let mut found = Vec::new();
        for (position, (left, right)) in left.iter().zip(right).enumerate() {
            let parts = self.comparison(left, op, right, whole, scope);
            let looked_up = position == 0 || *op == BinaryOperator::Eq;
            for (of, mut predicate) in parts {
                if !looked_up {
                    predicate.op = Op::Other;
                }
                found.push((of, predicate));
            }
        }
        found
    }

    fn compared(
        &mut self,
        key: &Expr,
        op: Op,
        with: &Expr,
        whole: &Expr,
        scope: &Scope,
    ) -> Vec<(usize, Predicate)> {
        let mut found = self.one(key, op, Operand::Other, whole, scope);
        for (of, predicate) in &mut found {
            predicate.operand = self.operand(with, *of, &predicate.key, op, scope);
        }
        found
    }

    /// The predicate on the key that `key` is, if it is one.
    fn one(
        &mut self,
        key: &Expr,
        op: Op,
        operand: Operand,
        whole: &Expr,
        scope: &Scope,
    ) -> Vec<(usize, Predicate)> {
        let Some((of, key)) = self.key(key, scope) else { return Vec::new() };
        let mentions = Mentions::of(whole);
        let alone = mentions.functions.is_empty()
            && mentions.placeholders.is_empty()
            && mentions.queries.is_empty()
            && mentions
                .columns
                .iter()
                .all(|name| self.resolve(name, scope).is_some_and(|(other, _)| other == of));
        let constant = alone.then(|| self.unqualified(whole));
        vec![(of, Predicate { key, op, operand, constant })]
    }

    /// What the key of a use is compared with; notes the placeholder that it is.
    pub(super) fn operand(
        &mut self,
        expr: &Expr,
        table_use: usize,
        key: &Key,
        op: Op,
        scope: &Scope,
    ) -> Operand {
        let mentions = Mentions::of(expr);
        if let [name] = mentions.placeholders.as_slice()
            && mentions.is_constant()
        {
            let key = key.clone();
            let compared = Parameter::Compared { table_use, key, op };
            self.parameters.entry(name.clone()).or_insert(compared);
            return Operand::Parameter(name.clone());
        }
        if mentions.is_literal() {
            return Operand::Literal(expr.to_string());
        }
        let joins = mentions
            .columns
            .iter()
            .any(|name| self.resolve(name, scope).is_some_and(|(of, _)| of != table_use));
        if joins { Operand::Join } else { Operand::Other }
    }
}

/// Whether a pattern of `LIKE` begins with what does not vary. A placeholder may.
fn is_prefix(pattern: &Expr) -> bool {
    match pattern {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => {
            !text.starts_with(['%', '_'])
        }
        Expr::Value(ValueWithSpan { value: Value::Placeholder(_), .. }) => true,
        Expr::Cast { expr, .. } | Expr::Nested(expr) => is_prefix(expr),
        Expr::BinaryOp { left, op: BinaryOperator::StringConcat, .. } => is_prefix(left),
        _ => false,
    }
}
