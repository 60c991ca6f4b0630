-- A marketplace of many tenants, with the skew that such a service has: few buyers buy most, a status that is worked
-- off is rare, rows lie in the order of their creation. The same rows every time.
SELECT setseed(0.5);

CREATE TABLE tenants (id INT PRIMARY KEY, name TEXT NOT NULL, plan TEXT NOT NULL);
INSERT INTO tenants SELECT n, 'tenant ' || n, CASE WHEN n % 10 = 0 THEN 'enterprise' ELSE 'free' END
    FROM generate_series(1, 200) AS n;

CREATE TABLE categories (id INT PRIMARY KEY, name TEXT NOT NULL, parent_id INT);
INSERT INTO categories SELECT n, 'category ' || n, nullif(n / 10, 0) FROM generate_series(1, 60) AS n;

CREATE TABLE users (
    id BIGINT PRIMARY KEY,
    tenant_id INT NOT NULL,
    email TEXT NOT NULL,
    name TEXT COLLATE "en-x-icu" NOT NULL,
    country TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    last_login TIMESTAMPTZ,
    deleted_at TIMESTAMPTZ
);
INSERT INTO users SELECT
    n,
    1 + floor(200 * random() ^ 2),
    'User' || n || '@Example.com',
    initcap(substr(md5('name' || n), 1, 10)),
    chr(65 + floor(20 * random())::int) || 'X',
    CASE WHEN random() < 0.97 THEN 'active' ELSE 'blocked' END,
    '2025-01-01'::timestamptz + n * interval '10 minutes',
    CASE WHEN random() < 0.6 THEN '2026-01-01'::timestamptz + random() * interval '100 days' END,
    CASE WHEN random() < 0.05 THEN '2026-03-01'::timestamptz END
    FROM generate_series(1, 60000) AS n;

CREATE TABLE products (
    id BIGINT PRIMARY KEY,
    sku TEXT NOT NULL,
    name TEXT NOT NULL,
    category_id INT NOT NULL,
    price NUMERIC(10, 2) NOT NULL,
    tags TEXT[] NOT NULL,
    attributes JSONB NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    deleted_at TIMESTAMPTZ
);
INSERT INTO products SELECT
    n,
    'SKU-' || lpad((n * 7919 % 50000)::text, 6, '0'),
    'product ' || md5(n::text),
    1 + n * 31 % 60,
    round((1 + 999 * random())::numeric, 2),
    ARRAY['tag' || floor(1000 * random()), 'tag' || floor(1000 * random())],
    jsonb_build_object('color', 'color' || floor(300 * random()), 'weight', floor(1000 * random())),
    '2025-06-01'::timestamptz + random() * interval '300 days',
    CASE WHEN random() < 0.02 THEN '2026-03-01'::timestamptz END
    FROM generate_series(1, 50000) AS n;

CREATE TABLE orders (
    id BIGINT PRIMARY KEY,
    tenant_id INT NOT NULL,
    user_id BIGINT NOT NULL,
    status TEXT NOT NULL,
    total NUMERIC(10, 2) NOT NULL,
    placed_at TIMESTAMPTZ NOT NULL,
    note TEXT NOT NULL
);
INSERT INTO orders SELECT
    n,
    1 + floor(200 * random() ^ 2),
    1 + floor(4000 * random() ^ 2),
    CASE
        WHEN dice < 0.001 THEN 'pending'
        WHEN dice < 0.004 THEN 'packed'
        WHEN dice < 0.010 THEN 'disputed'
        WHEN dice < 0.015 THEN 'refunded'
        WHEN dice < 0.100 THEN 'cancelled'
        ELSE 'delivered'
    END,
    round((5 + 500 * random())::numeric, 2),
    '2025-01-01'::timestamptz + n * interval '5 minutes',
    'note of order ' || n || repeat(' and more', 4)
    FROM (SELECT n, random() AS dice FROM generate_series(1, 120000) AS n) AS orders;

CREATE TABLE order_items (
    id BIGINT PRIMARY KEY,
    order_id BIGINT NOT NULL,
    product_id BIGINT NOT NULL,
    quantity INT NOT NULL,
    price NUMERIC(10, 2) NOT NULL
);
INSERT INTO order_items SELECT
    n, 1 + n * 2 / 3 % 120000, 1 + floor(50000 * random() ^ 3), 1 + floor(4 * random()),
    round((1 + 99 * random())::numeric, 2)
    FROM generate_series(1, 180000) AS n;

CREATE TABLE payments (
    id BIGINT PRIMARY KEY,
    order_id BIGINT NOT NULL,
    provider TEXT NOT NULL,
    reference TEXT NOT NULL,
    status TEXT NOT NULL,
    amount NUMERIC(10, 2) NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
INSERT INTO payments SELECT
    n, n, CASE WHEN random() < 0.8 THEN 'card' ELSE 'transfer' END, 'ref_' || md5(n::text), 'captured',
    round((5 + 500 * random())::numeric, 2), '2025-01-01'::timestamptz + n * interval '3 minutes'
    FROM generate_series(1, 120000) AS n;

CREATE TABLE messages (
    id BIGINT PRIMARY KEY,
    sender_id BIGINT NOT NULL,
    recipient_id BIGINT NOT NULL,
    priority SMALLINT NOT NULL,
    body TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    read_at TIMESTAMPTZ,
    deleted_at TIMESTAMPTZ
);
INSERT INTO messages SELECT
    n,
    1 + floor(1000 * random() ^ 2),
    1 + floor(1000 * random() ^ 2),
    floor(10 * random()),
    'message ' || n || repeat(' text', 12),
    '2025-06-01'::timestamptz + n * interval '3 minutes',
    CASE WHEN random() < 0.96 THEN '2026-03-01'::timestamptz END,
    CASE WHEN random() < 0.75 THEN '2026-03-01'::timestamptz END
    FROM generate_series(1, 100000) AS n;

CREATE TABLE events (
    id BIGINT PRIMARY KEY,
    tenant_id INT NOT NULL,
    user_id BIGINT NOT NULL,
    kind TEXT NOT NULL,
    payload JSONB NOT NULL,
    published BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
INSERT INTO events SELECT
    n,
    1 + floor(200 * random() ^ 2),
    1 + floor(10000 * random() ^ 2),
    'kind' || floor(12 * random() ^ 2),
    jsonb_build_object('session', 's' || floor(60000 * random()), 'path', '/' || n % 97),
    random() < 0.998,
    '2025-06-01'::timestamptz + n / 20 * interval '30 minutes'
    FROM generate_series(1, 160000) AS n;

CREATE TABLE sessions (
    token TEXT PRIMARY KEY,
    user_id BIGINT NOT NULL,
    ip INET NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);
INSERT INTO sessions SELECT
    md5('session' || n), 1 + floor(40000 * random()), '10.0.0.0'::inet + floor(16000000 * random())::bigint,
    '2026-03-01'::timestamptz + random() * interval '30 days'
    FROM generate_series(1, 60000) AS n;

-- Written all the time, and read now and then.
CREATE TABLE readings (
    device_id INT NOT NULL,
    slot INT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, slot)
) WITH (fillfactor = 70);
INSERT INTO readings SELECT
    device, slot, random() * 100, '2026-01-01'::timestamptz + random() * interval '60 days'
    FROM generate_series(1, 300) AS device, generate_series(1, 200) AS slot;

-- As an object mapper names things.
CREATE TABLE "AuditLog" (
    "id" BIGINT PRIMARY KEY,
    "actorId" INT NOT NULL,
    "action" TEXT NOT NULL,
    "createdAt" TIMESTAMPTZ NOT NULL
);
INSERT INTO "AuditLog" SELECT
    n, 1 + floor(500 * random() ^ 2), 'action ' || floor(30 * random()),
    '2025-06-01'::timestamptz + n * interval '3 minutes'
    FROM generate_series(1, 60000) AS n;

CREATE SCHEMA billing;
CREATE TABLE billing.invoices (
    id UUID PRIMARY KEY,
    tenant_id INT NOT NULL,
    number TEXT NOT NULL,
    paid BOOLEAN NOT NULL,
    due DATE NOT NULL
);
INSERT INTO billing.invoices SELECT
    md5('invoice' || n)::uuid, 1 + floor(200 * random() ^ 2), 'INV-' || lpad(n::text, 8, '0'), random() < 0.9,
    '2025-01-01'::date + floor(365 * random())::int
    FROM generate_series(1, 60000) AS n;

CREATE VIEW live_users AS SELECT * FROM users WHERE deleted_at IS NULL;

ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users;
ALTER TABLE order_items ADD FOREIGN KEY (order_id) REFERENCES orders;
ALTER TABLE order_items ADD FOREIGN KEY (product_id) REFERENCES products;
