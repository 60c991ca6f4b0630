//! What a statement is without its values.

use expect_test::{Expect, expect};
use greenwave_db::query_stats::{
    Dialect::{self, Postgres, Sqlite},
    Shape,
};
use proptest::prelude::*;

fn check(dialect: Dialect, statement: &str, expected: Expect) {
    let shape = Shape::of(statement, dialect);
    expected.assert_eq(&shape.text);
    assert_eq!(Shape::of(&shape.text, dialect), shape, "the shape's shape is itself");
}

#[track_caller]
fn alike(dialect: Dialect, statements: &[&str]) {
    let first = Shape::of(statements[0], dialect);
    for statement in statements {
        let other = Shape::of(statement, dialect);
        assert_eq!(other.fingerprint, first.fingerprint, "{} and {}", first.text, other.text);
    }
}

#[track_caller]
fn different(a: &str, b: &str) {
    for dialect in [Postgres, Sqlite] {
        assert_ne!(Shape::of(a, dialect).fingerprint, Shape::of(b, dialect).fingerprint, "{a} and {b}");
    }
}

#[test]
fn literals_and_placeholders_are_values() {
    check(
        Postgres,
        "SELECT name FROM users WHERE id = 7 AND email='a@b.c' AND x = $1",
        expect!["SELECT name FROM users WHERE id = $1 AND email=$2 AND x = $3"],
    );
    check(
        Sqlite,
        "SELECT name FROM users WHERE id = ?1 AND a = :a AND b = @b AND c = $c AND d = ? AND e = x'00'",
        expect!["SELECT name FROM users WHERE id = ? AND a = ? AND b = ? AND c = ? AND d = ? AND e = ?"],
    );
    alike(Postgres, &["SELECT 1", "SELECT 'x'", "SELECT $1", "SELECT 0x1F", "SELECT 1.5e-3", "SELECT .5"]);
}

#[test]
fn every_kind_of_string_is_one_value() {
    alike(
        Postgres,
        &[
            "SELECT 'it''s' AS a",
            r"SELECT E'it\'s' AS a",
            "SELECT $$it's$$ AS a",
            "SELECT $tag$ $$ 'x $tag$ AS a",
            "SELECT B'101' AS a",
            r"SELECT U&'\0061' AS a",
        ],
    );
}

#[test]
fn double_quotes_make_strings_where_sqlite_compares_and_names_elsewhere() {
    check(
        Sqlite,
        r#"SELECT "id", "name" FROM "users" AS "u" WHERE "name" = "Ada" AND "u"."a" != "x" AND b LIKE "A%""#,
        expect![[
            r#"SELECT "id", "name" FROM "users" AS "u" WHERE "name" = ? AND "u"."a" != ? AND b LIKE ?"#
        ]],
    );
    check(
        Sqlite,
        r#"SELECT 1 FROM t JOIN u ON "t"."id" = "u"."t" WHERE lower("a") IN ("x", "y") ORDER BY "a", "b""#,
        expect![[
            r#"SELECT ? FROM t JOIN u ON "t"."id" = "u"."t" WHERE lower("a") IN (?) ORDER BY "a", "b""#
        ]],
    );
    check(
        Sqlite,
        r#"INSERT INTO "t" ("a", "b") VALUES ("x", lower("y")), ("z", lower("y")) ON CONFLICT ("a") DO NOTHING"#,
        expect![[r#"INSERT INTO "t" ("a", "b") VALUES (?, lower("y")) ON CONFLICT ("a") DO NOTHING"#]],
    );
    check(
        Sqlite,
        r#"SELECT a FROM t WHERE (a, b) IN (SELECT "a", "b" FROM u)"#,
        expect![[r#"SELECT a FROM t WHERE (a, b) IN (SELECT "a", "b" FROM u)"#]],
    );
    check(
        Postgres,
        r#"SELECT "a" FROM t WHERE "a" = "b" AND c IN ("d", "e")"#,
        expect![[r#"SELECT "a" FROM t WHERE "a" = "b" AND c IN ("d", "e")"#]],
    );
}

#[test]
fn a_sign_belongs_to_its_number_where_no_operand_stands_before_it() {
    check(
        Postgres,
        "SELECT -1, a - 1, a-1, (-1), - 2 WHERE b = -5 AND c BETWEEN -1 AND +2 LIMIT -1",
        expect!["SELECT $1, a - $2, a-$3, ($4), $5 WHERE b = $6 AND c BETWEEN $7 AND $8 LIMIT $9"],
    );
}

#[test]
fn lists_of_any_length_are_one() {
    check(
        Postgres,
        "SELECT * FROM t WHERE a IN (1, 2,3) AND b NOT IN ('x')",
        expect!["SELECT * FROM t WHERE a IN ($1) AND b NOT IN ($2)"],
    );
    check(
        Postgres,
        "SELECT * FROM t WHERE (a, b) IN ((1, 2), (3, 4))",
        expect!["SELECT * FROM t WHERE (a, b) IN (($1, $2))"],
    );
    check(
        Postgres,
        "SELECT * FROM t WHERE a = ANY(ARRAY[1, 2, 3]::int[])",
        expect!["SELECT * FROM t WHERE a = ANY(ARRAY[$1]::int[])"],
    );
    check(
        Postgres,
        "INSERT INTO t (a, b) VALUES (1, 'x'), ($1, $2), (3, NULL) ON CONFLICT DO NOTHING RETURNING id",
        expect!["INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id"],
    );
    check(
        Sqlite,
        "INSERT INTO t VALUES (1, now()), (2, now()), (3, DEFAULT)",
        expect!["INSERT INTO t VALUES (?, now()), (?, DEFAULT)"],
    );
    check(Sqlite, "SELECT f(1, 2), a IN (b, 1, c, 2)", expect!["SELECT f(?, ?), a IN (b, ?, c)"]);
}

#[test]
fn case_blanks_and_comments_do_not_count() {
    alike(
        Postgres,
        &[
            "SELECT a FROM t WHERE b = 1",
            "select A\n from  T where B = 2;",
            "/* who: me /* nested */ */ SELECT a -- the column\nFROM t WHERE b = 3 ; ",
        ],
    );
    different("SELECT a FROM \"T\"", "SELECT a FROM \"t\"");
    different("SELECT a FROM t", "SELECT a FROM u");
    different("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b > 1");
}

#[test]
fn what_looks_like_a_value_and_is_none_stays() {
    check(
        Postgres,
        "SELECT t1.a2, \"1\" FROM t1 ORDER BY 1, 2 DESC LIMIT 3",
        expect![[r#"SELECT t1.a2, "1" FROM t1 ORDER BY 1, 2 DESC LIMIT $1"#]],
    );
    check(
        Postgres,
        "SELECT a FROM t WHERE b IS NULL AND c IS NOT TRUE AND d = NULL",
        expect!["SELECT a FROM t WHERE b IS NULL AND c IS NOT TRUE AND d = $1"],
    );
    check(
        Postgres,
        "SELECT a->>'k', b ? 'x', c[1], d::int FROM t",
        expect!["SELECT a->>$1, b ? $2, c[$3], d::int FROM t"],
    );
    check(Sqlite, "SELECT [a 1], `b 2` FROM t", expect!["SELECT [a 1], `b 2` FROM t"]);
    different("SELECT a FROM t ORDER BY 1", "SELECT a FROM t ORDER BY 2");
}

#[test]
fn a_literal_of_a_named_type_can_still_be_prepared() {
    check(
        Postgres,
        "SELECT now() - INTERVAL '1 day', date '2026-01-01'",
        expect!["SELECT now() - $1::INTERVAL, $2::date"],
    );
}

#[test]
fn what_does_not_end_is_read_to_the_end() {
    for text in [
        "SELECT 'secret",
        "SELECT E'secret\\",
        "SELECT $a$secret",
        "SELECT /* secret",
        "SELECT -- secret",
        "SELECT E'secret\\é",
    ] {
        for dialect in [Postgres, Sqlite] {
            let shape = Shape::of(text, dialect).text;
            assert!(dialect == Sqlite || !shape.contains("secret"), "{text} is {shape}");
        }
    }
}

/// Texts made of what statements are made of, in any order.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "SELECT", "IN", "VALUES", "ARRAY", "BY", "ORDER", "LIMIT", "NULL", "date", "interval", "E", "x",
        "U&", "a", "é", "_1", "'", "''", "'x'", "\"", "\"q\"", "$", "$$", "$1", "$t$", "?", ":a", "@", "`",
        "[", "]", "(", ")", ",", ";", ".", "1", "2", ".5", "1e", "0x", "-", "+", "--", "/*", "*/", "::",
        "\\", " ", "\n", "\0",
    ]);
    let words =
        prop::collection::vec(prop_oneof![8 => pieces.prop_map(str::to_owned), 1 => any::<String>()], 0..40);
    words.prop_map(|words| words.concat())
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u32>().prop_map(|n| format!("{n}.5e-7")),
        "[a-z' ,()-]{0,12}".prop_map(|text| format!("'{}'", text.replace('\'', "''"))),
        Just("$1".to_owned()),
        Just("NULL".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_text_has_a_shape_that_is_its_own(text in text(), sqlite: bool) {
        let dialect = if sqlite { Sqlite } else { Postgres };
        let shape = Shape::of(&text, dialect);
        prop_assert_eq!(Shape::of(&shape.text, dialect), shape);
    }

    #[test]
    fn neither_values_nor_the_length_of_lists_count(
        a in prop::collection::vec(value(), 1..20),
        b in prop::collection::vec(value(), 1..20),
        sqlite: bool,
    ) {
        let dialect = if sqlite { Sqlite } else { Postgres };
        let of = |values: &[String]| {
            let rows: Vec<String> = values.iter().map(|value| format!("({value}, {value})")).collect();
            let (list, rows, one) = (values.join(", "), rows.join(","), &values[0]);
            [
                format!("SELECT * FROM t WHERE a IN ({list}) AND b = {one} AND c > {one} LIMIT 5"),
                format!("INSERT INTO t (a, b) VALUES {rows} RETURNING a"),
                format!("SELECT f({one}, ARRAY[{list}])"),
            ]
        };
        for (a, b) in of(&a).iter().zip(&of(&b)) {
            // In SQLite, brackets quote a name.
            if sqlite && a.contains("ARRAY") {
                continue;
            }
            prop_assert_eq!(Shape::of(a, dialect), Shape::of(b, dialect));
        }
    }
}
