//! Rows that meet a condition.

use super::{Shape, often, shape};

pub(super) const FILTERS: &[Shape] = &[
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
