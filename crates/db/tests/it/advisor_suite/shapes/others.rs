//! Aggregates, writes, and what no index serves.

use super::{Shape, Statement, often, shape};

const UPSERT: Statement = often(
    "INSERT INTO readings VALUES ($1, $2, $3, now())
     ON CONFLICT (device_id, slot) DO UPDATE SET value = $3, updated_at = now()",
    &["7", "42", "3.5"],
);
const RECENT: Statement = often("SELECT * FROM readings WHERE updated_at > '2026-03-01 23:00'", &[]);

pub(super) const AGGREGATES: &[Shape] = &[
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

pub(super) const WRITES: &[Shape] = &[
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

pub(super) const NOTHING: &[Shape] = &[
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
