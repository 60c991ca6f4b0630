//! Several tables, and other words for the same needs.

use super::{Shape, often, shape};

pub(super) const JOINS: &[Shape] = &[
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
pub(super) const SPELLINGS: &[Shape] = &[
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
