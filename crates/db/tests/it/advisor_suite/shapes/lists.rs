//! Pages of a list, in an order.

use super::{Shape, often, shape};

pub(super) const LISTS: &[Shape] = &[
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
