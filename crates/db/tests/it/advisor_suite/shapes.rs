//! What services ask of their databases, and the index that an experienced engineer would create for it.

/// Statements that are advised on together, and the best that can be done for them.
pub(super) struct Shape {
    pub(super) name: &'static str,
    /// Indexes that are there already.
    pub(super) existing: &'static [&'static str],
    pub(super) statements: &'static [Statement],
    /// The best known indexes, each as what follows `CREATE INDEX ON`; none where an index does not pay.
    pub(super) best: &'static [&'static str],
    /// Sets of indexes that come to mind too, and that the best known ones beat.
    pub(super) rivals: &'static [&'static [&'static str]],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Statement {
    pub(super) sql: &'static str,
    /// What its placeholders stand for where it is executed.
    pub(super) values: &'static [&'static str],
    pub(super) calls: f64,
}

impl Shape {
    pub(super) fn only_reads(&self) -> bool {
        self.statements.iter().all(Statement::only_reads)
    }
}

impl Statement {
    pub(super) fn only_reads(&self) -> bool {
        !["INSERT", "UPDATE", "DELETE"].iter().any(|verb| self.sql.starts_with(verb))
    }
}

const fn often(sql: &'static str, values: &'static [&'static str]) -> Statement {
    Statement { sql, values, calls: 1000.0 }
}

/// A shape without existing indexes.
const fn shape(
    name: &'static str,
    statements: &'static [Statement],
    best: &'static [&'static str],
    rivals: &'static [&'static [&'static str]],
) -> Shape {
    Shape { name, existing: &[], statements, best, rivals }
}

pub(super) const SHAPES: &[&[Shape]] = &[LISTS, FILTERS, JOINS, SPELLINGS, AGGREGATES, WRITES, NOTHING];

const LISTS: &[Shape] = &[
    shape(
        "status, newest first",
        &[often("SELECT * FROM orders WHERE status = $1 ORDER BY placed_at DESC LIMIT 20", &["'refunded'"])],
        &["orders (status, placed_at DESC)"],
        &[&["orders (status)"], &["orders (placed_at DESC)"], &["orders (placed_at, status)"]],
    ),
    shape(
        "a customer's orders, newest first",
        &[often(
            "SELECT * FROM orders WHERE user_id = $1 ORDER BY placed_at DESC, id DESC LIMIT 10",
            &["100"],
        )],
        &["orders (user_id, placed_at DESC, id DESC)"],
        &[&["orders (user_id)"], &["orders (placed_at DESC, id DESC)"]],
    ),
    shape(
        "inbox by priority, then age",
        &[often(
            "SELECT * FROM messages WHERE recipient_id = $1 ORDER BY priority DESC, created_at LIMIT 20",
            &["100"],
        )],
        &["messages (recipient_id, priority DESC, created_at)"],
        &[&["messages (recipient_id)"], &["messages (recipient_id, created_at)"]],
    ),
    shape(
        "keyset, compared as a row",
        &[often(
            "SELECT * FROM events WHERE (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT 50",
            &["'2025-08-01'", "100000"],
        )],
        &["events (created_at DESC, id DESC)"],
        &[&["events (id DESC)"]],
    ),
    shape(
        "keyset of a tenant, compared as a row",
        &[often(
            "SELECT * FROM events WHERE tenant_id = $1 AND (created_at, id) < ($2, $3)
             ORDER BY created_at DESC, id DESC LIMIT 50",
            &["30", "'2025-08-01'", "100000"],
        )],
        &["events (tenant_id, created_at DESC, id DESC)"],
        &[&["events (tenant_id)"], &["events (created_at DESC, id DESC)"]],
    ),
    shape(
        "keyset, spelled with OR",
        &[often(
            "SELECT * FROM messages
             WHERE recipient_id = $1 AND (created_at < $2 OR (created_at = $2 AND id < $3))
             ORDER BY created_at DESC, id DESC LIMIT 20",
            &["100", "'2025-11-20'", "100000"],
        )],
        &["messages (recipient_id, created_at DESC, id DESC)"],
        &[&["messages (recipient_id)"], &["messages (created_at DESC, id DESC)"]],
    ),
    shape(
        "two statuses, oldest first",
        &[often(
            "SELECT * FROM orders WHERE status IN ('packed', 'disputed') ORDER BY placed_at LIMIT 50",
            &[],
        )],
        &["orders (placed_at) WHERE status IN ('packed', 'disputed')"],
        &[&["orders (status, placed_at)"], &["orders (placed_at)"]],
    ),
    shape(
        "a rare status, oldest first",
        &[often("SELECT * FROM orders WHERE status = 'pending' ORDER BY placed_at LIMIT 100", &[])],
        &["orders (placed_at) WHERE status = 'pending'"],
        &[&["orders (status, placed_at)"], &["orders (placed_at)"]],
    ),
    shape(
        "work taken with SKIP LOCKED",
        &[often(
            "SELECT * FROM orders WHERE status = 'packed' ORDER BY placed_at LIMIT 10 FOR UPDATE SKIP LOCKED",
            &[],
        )],
        &["orders (placed_at) WHERE status = 'packed'"],
        &[&["orders (status, placed_at)"], &["orders (placed_at)"]],
    ),
    shape(
        "an outbox's unpublished rows",
        &[often("SELECT * FROM events WHERE NOT published ORDER BY id LIMIT 500", &[])],
        &["events (id) WHERE NOT published"],
        &[&["events (published, id)"]],
    ),
    shape(
        "nulls last",
        &[often(
            "SELECT * FROM users WHERE country = $1 ORDER BY last_login DESC NULLS LAST LIMIT 20",
            &["'CX'"],
        )],
        &["users (country, last_login DESC NULLS LAST)"],
        &[&["users (country)"], &["users (country, last_login)"]],
    ),
    shape(
        "the latest of all",
        &[often("SELECT * FROM products ORDER BY updated_at DESC LIMIT 20", &[])],
        &["products (updated_at DESC)"],
        &[],
    ),
    shape(
        "soft delete, newest first",
        &[often(
            "SELECT * FROM messages WHERE sender_id = $1 AND deleted_at IS NULL ORDER BY created_at DESC LIMIT 20",
            &["100"],
        )],
        &["messages (sender_id, created_at DESC) WHERE deleted_at IS NULL"],
        &[&["messages (sender_id)"], &["messages (sender_id, created_at DESC)"]],
    ),
    shape(
        "in the order of two columns",
        &[often("SELECT * FROM products ORDER BY category_id, price DESC LIMIT 50", &[])],
        &["products (category_id, price DESC)"],
        &[&["products (category_id)"]],
    ),
    shape(
        "all statuses but one, newest first",
        &[often(
            "SELECT * FROM orders WHERE tenant_id = $1 AND status <> 'cancelled' ORDER BY placed_at DESC LIMIT 20",
            &["30"],
        )],
        &["orders (tenant_id, placed_at DESC)"],
        &[&["orders (tenant_id)"], &["orders (placed_at DESC)"]],
    ),
    shape(
        "a tenant's events of a kind",
        &[often(
            "SELECT * FROM events WHERE tenant_id = $1 AND kind = $2 ORDER BY created_at DESC LIMIT 20",
            &["30", "'kind7'"],
        )],
        &["events (tenant_id, kind, created_at DESC)"],
        &[
            &["events (tenant_id)"],
            &["events (tenant_id, created_at DESC)"],
            &["events (kind, created_at DESC)"],
        ],
    ),
];

const FILTERS: &[Shape] = &[
    shape(
        "range of time",
        &[often(
            "SELECT * FROM payments WHERE created_at >= $1 AND created_at < $2",
            &["'2025-05-01'", "'2025-05-02'"],
        )],
        &["payments (created_at)"],
        &[],
    ),
    shape(
        "equality and range",
        &[often(
            "SELECT * FROM products WHERE category_id = $1 AND price BETWEEN $2 AND $3",
            &["7", "100", "150"],
        )],
        &["products (category_id, price)"],
        &[&["products (category_id)"], &["products (price, category_id)"]],
    ),
    shape(
        "a list of keys",
        &[often(
            "SELECT * FROM products WHERE sku = ANY($1)",
            &["ARRAY['SKU-000100', 'SKU-000200', 'SKU-040000']"],
        )],
        &["products (sku)"],
        &[],
    ),
    shape(
        "LIKE prefix",
        &[often("SELECT * FROM users WHERE name LIKE 'Ab3%'", &[])],
        &["users (name text_pattern_ops)"],
        &[&["users (name)"]],
    ),
    shape(
        "LIKE prefix in lower case",
        &[often("SELECT * FROM users WHERE lower(name) LIKE 'ab3%'", &[])],
        &["users (lower(name) text_pattern_ops)"],
        &[&["users (lower(name))"]],
    ),
    shape(
        "words of a text",
        &[often(
            "SELECT * FROM messages WHERE to_tsvector('english', body) @@ plainto_tsquery('english', $1)",
            &["'4711'"],
        )],
        &["messages USING gin (to_tsvector('english', body))"],
        &[],
    ),
    shape(
        "three equalities",
        &[often(
            "SELECT * FROM messages WHERE sender_id = $1 AND recipient_id = $2 AND priority = $3",
            &["1", "2", "3"],
        )],
        &["messages (sender_id, recipient_id, priority)"],
        &[&["messages (sender_id)"], &["messages (priority)"]],
    ),
    shape(
        "address in lower case",
        &[often("SELECT * FROM users WHERE lower(email) = $1", &["'user4711@example.com'"])],
        &["users (lower(email))"],
        &[&["users (email)"]],
    ),
    shape(
        "a field of JSON",
        &[often("SELECT * FROM events WHERE payload ->> 'session' = $1", &["'s4711'"])],
        &["events ((payload ->> 'session'))"],
        &[&["events USING gin (payload)"]],
    ),
    shape(
        "JSON contains",
        &[often("SELECT * FROM products WHERE attributes @> '{\"color\": \"color42\"}'", &[])],
        &["products USING gin (attributes jsonb_path_ops)"],
        &[&["products (attributes)"]],
    ),
    shape(
        "array contains",
        &[often("SELECT * FROM products WHERE tags @> ARRAY['tag42']", &[])],
        &["products USING gin (tags)"],
        &[&["products (tags)"]],
    ),
    shape(
        "either of two columns",
        &[often("SELECT * FROM messages WHERE sender_id = $1 OR recipient_id = $1", &["400"])],
        &["messages (sender_id)", "messages (recipient_id)"],
        &[&["messages (sender_id)"], &["messages (sender_id, recipient_id)"]],
    ),
    shape(
        "two statements, one index",
        &[
            often("SELECT * FROM messages WHERE recipient_id = $1", &["400"]),
            often("SELECT * FROM messages WHERE recipient_id = $1 AND priority = $2", &["400", "3"]),
        ],
        &["messages (recipient_id, priority)"],
        &[&["messages (recipient_id)"], &["messages (priority, recipient_id)"]],
    ),
];

const JOINS: &[Shape] = &[
    shape(
        "items of a customer's orders",
        &[often(
            "SELECT i.* FROM orders o JOIN order_items i ON i.order_id = o.id WHERE o.user_id = $1",
            &["2000"],
        )],
        &["orders (user_id)", "order_items (order_id)"],
        &[&["orders (user_id)"], &["order_items (order_id)"]],
    ),
    shape(
        "three tables from an address",
        &[often(
            "SELECT o.*, i.* FROM users u
             JOIN orders o ON o.user_id = u.id JOIN order_items i ON i.order_id = o.id WHERE u.email = $1",
            &["'User2000@Example.com'"],
        )],
        &["users (email)", "orders (user_id)", "order_items (order_id)"],
        &[&["users (email)"], &["users (email)", "orders (user_id)"]],
    ),
    shape(
        "EXISTS",
        &[often(
            "SELECT p.* FROM products p
             WHERE p.price BETWEEN 500 AND 501 AND EXISTS (SELECT FROM order_items i WHERE i.product_id = p.id)",
            &[],
        )],
        &["products (price)", "order_items (product_id)"],
        &[&["products (price)"], &["order_items (product_id)"]],
    ),
    shape(
        "anti-join",
        &[often(
            "SELECT u.* FROM users u
             WHERE u.created_at >= '2026-02-20' AND NOT EXISTS (SELECT FROM sessions s WHERE s.user_id = u.id)",
            &[],
        )],
        &["users (created_at)", "sessions (user_id)"],
        &[&["users (created_at)"], &["sessions (user_id)"]],
    ),
    shape(
        "a day's items",
        &[often(
            "SELECT p.category_id, sum(i.quantity * i.price)
             FROM orders o JOIN order_items i ON i.order_id = o.id JOIN products p ON p.id = i.product_id
             WHERE o.placed_at >= '2025-10-01 10:00' AND o.placed_at < '2025-10-01 14:00' GROUP BY p.category_id",
            &[],
        )],
        &["orders (placed_at)", "order_items (order_id)"],
        &[&["orders (placed_at)"], &["order_items (order_id)"]],
    ),
];

/// The same needs in other words.
const SPELLINGS: &[Shape] = &[
    shape(
        "names in quotes",
        &[often(
            r#"SELECT * FROM "AuditLog" WHERE "actorId" = $1 ORDER BY "createdAt" DESC LIMIT 20"#,
            &["100"],
        )],
        &[r#""AuditLog" ("actorId", "createdAt" DESC)"#],
        &[&[r#""AuditLog" ("actorId")"#], &[r#""AuditLog" ("createdAt" DESC)"#]],
    ),
    shape(
        "a table of another schema",
        &[often(
            "SELECT * FROM billing.invoices WHERE NOT paid AND tenant_id = $1 AND due < $2",
            &["30", "'2025-02-01'"],
        )],
        &["billing.invoices (tenant_id, due) WHERE NOT paid"],
        &[&["billing.invoices (tenant_id)"], &["billing.invoices (tenant_id, paid, due)"]],
    ),
    shape(
        "through a view",
        &[often("SELECT * FROM live_users WHERE email = $1", &["'User4711@Example.com'"])],
        &["users (email)"],
        &[&["users (deleted_at)"]],
    ),
    shape(
        "through a subquery",
        &[often(
            "SELECT * FROM (SELECT * FROM events WHERE tenant_id = $1) AS ours WHERE kind = $2",
            &["30", "'kind11'"],
        )],
        &["events (tenant_id, kind)"],
        &[&["events (tenant_id)"], &["events (kind)"]],
    ),
    shape(
        "IN, from a subquery",
        &[often(
            "SELECT * FROM order_items WHERE order_id IN (SELECT id FROM orders WHERE user_id = $1)",
            &["2000"],
        )],
        &["orders (user_id)", "order_items (order_id)"],
        &[&["orders (user_id)"], &["order_items (order_id)"]],
    ),
    shape(
        "through a common table expression",
        &[often(
            "WITH latest AS (SELECT * FROM orders WHERE tenant_id = $1 ORDER BY placed_at DESC LIMIT 10)
             SELECT latest.*, i.* FROM latest JOIN order_items i ON i.order_id = latest.id",
            &["30"],
        )],
        &["orders (tenant_id, placed_at DESC)", "order_items (order_id)"],
        &[&["orders (tenant_id, placed_at DESC)"], &["order_items (order_id)"]],
    ),
    shape(
        "LATERAL, the latest of each",
        &[often(
            "SELECT o.id, latest.* FROM orders o CROSS JOIN LATERAL
                 (SELECT * FROM messages m WHERE m.recipient_id = o.user_id ORDER BY m.created_at DESC LIMIT 1) AS latest
             WHERE o.id BETWEEN 1000 AND 1050",
            &[],
        )],
        &["messages (recipient_id, created_at DESC)"],
        &[&["messages (recipient_id)"], &["messages (created_at DESC)"]],
    ),
    shape(
        "a join, newest first",
        &[often(
            "SELECT o.*, u.name FROM orders AS o INNER JOIN users AS u ON (u.id = o.user_id)
             WHERE o.tenant_id = $1 ORDER BY o.placed_at DESC OFFSET 20 LIMIT 20",
            &["30"],
        )],
        &["orders (tenant_id, placed_at DESC)"],
        &[&["orders (tenant_id)"], &["orders (placed_at DESC)"], &["orders (user_id)"]],
    ),
    Shape {
        name: "an index that falls short",
        existing: &["orders (user_id)"],
        statements: &[often("SELECT * FROM orders WHERE user_id = $1 ORDER BY placed_at DESC LIMIT 10", &["100"])],
        best: &["orders (user_id, placed_at DESC)"],
        rivals: &[&["orders (placed_at DESC)"]],
    },
];

const AGGREGATES: &[Shape] = &[
    shape(
        "unread messages, counted",
        &[often("SELECT count(*) FROM messages WHERE recipient_id = $1 AND read_at IS NULL", &["100"])],
        &["messages (recipient_id) WHERE read_at IS NULL"],
        &[&["messages (recipient_id)"], &["messages (recipient_id, read_at)"]],
    ),
    shape(
        "a customer's total",
        &[often("SELECT count(*), sum(total) FROM orders WHERE user_id = $1", &["100"])],
        &["orders (user_id) INCLUDE (total)"],
        &[&["orders (user_id)"]],
    ),
    shape(
        "a tenant's events by kind",
        &[often("SELECT kind, count(*) FROM events WHERE tenant_id = $1 GROUP BY kind", &["30"])],
        &["events (tenant_id, kind)"],
        &[&["events (tenant_id)"], &["events (kind, tenant_id)"]],
    ),
    shape(
        "the latest of each",
        &[often(
            "SELECT DISTINCT ON (user_id) user_id, created_at, kind FROM events WHERE tenant_id = $1
             ORDER BY user_id, created_at DESC",
            &["30"],
        )],
        &["events (tenant_id, user_id, created_at DESC) INCLUDE (kind)"],
        &[&["events (tenant_id)"], &["events (tenant_id, user_id, created_at DESC)"]],
    ),
    shape(
        "the latest of one",
        &[often("SELECT max(placed_at) FROM orders WHERE user_id = $1", &["100"])],
        &["orders (user_id, placed_at)"],
        &[&["orders (user_id)"], &["orders (placed_at)"]],
    ),
];

const WRITES: &[Shape] = &[
    shape(
        "delete what has expired",
        &[often("DELETE FROM sessions WHERE expires_at < '2026-03-01 02:00'", &[])],
        &["sessions (expires_at)"],
        &[],
    ),
    shape(
        "delete by user",
        &[often("DELETE FROM sessions WHERE user_id = $1", &["4711"])],
        &["sessions (user_id)"],
        &[],
    ),
    shape(
        "delete by another table",
        &[often(
            "DELETE FROM sessions s USING users u WHERE u.id = s.user_id AND u.email = $1",
            &["'User4711@Example.com'"],
        )],
        &["users (email)", "sessions (user_id)"],
        &[&["users (email)"], &["sessions (user_id)"]],
    ),
    shape(
        "read as often as written",
        &[UPSERT, RECENT],
        &["readings (updated_at)"],
        &[&["readings (updated_at, value)"]],
    ),
    shape(
        "update by reference",
        &[often(
            "UPDATE payments SET status = $2 WHERE reference = $1",
            &["'ref_' || md5('4711')", "'refunded'"],
        )],
        &["payments (reference)"],
        &[&["payments (reference, status)"]],
    ),
];

const UPSERT: Statement = often(
    "INSERT INTO readings VALUES ($1, $2, $3, now())
     ON CONFLICT (device_id, slot) DO UPDATE SET value = $3, updated_at = now()",
    &["7", "42", "3.5"],
);
const RECENT: Statement = often("SELECT * FROM readings WHERE updated_at > '2026-03-01 23:00'", &[]);

const NOTHING: &[Shape] = &[
    shape(
        "written far more often than read",
        &[Statement { calls: 1_000_000.0, ..UPSERT }, Statement { calls: 1.0, ..RECENT }],
        &[],
        &[&["readings (updated_at)"]],
    ),
    shape(
        "a table of one page",
        &[often("SELECT * FROM categories WHERE name = $1", &["'category 7'"])],
        &[],
        &[&["categories (name)"]],
    ),
    Shape {
        name: "served already",
        existing: &["orders (user_id, placed_at DESC)"],
        statements: &[often(
            "SELECT * FROM orders WHERE user_id = $1 ORDER BY placed_at DESC LIMIT 10",
            &["100"],
        )],
        best: &[],
        rivals: &[&["orders (user_id)"], &["orders (user_id, placed_at DESC, id DESC)"]],
    },
    Shape {
        name: "served by a prefix",
        existing: &["messages (recipient_id, created_at)"],
        statements: &[often("SELECT * FROM messages WHERE recipient_id = $1", &["400"])],
        best: &[],
        rivals: &[&["messages (recipient_id)"]],
    },
    shape(
        "served by the primary key",
        &[often("SELECT * FROM users WHERE id = $1", &["4711"])],
        &[],
        &[&["users (id)"]],
    ),
    shape(
        "a batch, by primary key",
        &[often(
            "SELECT * FROM orders WHERE id > $1 AND status = 'delivered' ORDER BY id LIMIT 100",
            &["50000"],
        )],
        &[],
        &[&["orders (status, id)"]],
    ),
    shape(
        "a day, spelled as no index can hold",
        &[often("SELECT * FROM payments WHERE created_at::date = $1", &["'2025-05-01'"])],
        &[],
        &[&["payments (created_at)"]],
    ),
    shape(
        "LIKE, open in front",
        &[often("SELECT * FROM users WHERE email LIKE '%4711%'", &[])],
        &[],
        &[&["users (email)"], &["users (email text_pattern_ops)"]],
    ),
    shape(
        "nearly every row",
        &[often("SELECT * FROM users WHERE status = 'active'", &[])],
        &[],
        &[&["users (status)"]],
    ),
];
