-- The seed as a harness applies it, at the sizes :users, :products and :orders; at 100000, 10000 and 500000 it is
-- the full data set. :busy is a hundredth of :users.
-- Keys and indexes come last: a bulk load into bare tables is the fast way.
INSERT INTO users (id, name, email, created_at)
SELECT i, 'User ' || i, 'user' || i || '@example.com',
       timestamptz '2023-01-01 00:00:00.123Z' + i * interval '5 minutes'
FROM generate_series(1, :users) i;

INSERT INTO products (id, name, price_cents, stock)
SELECT i, 'Product ' || i, 100 + (i * 7919) % 20000, 1000000
FROM generate_series(1, :products) i;

-- One order in ten goes to the first hundredth of the users, so these have more than 20 orders
-- (the list's limit is then met); the others have four or five.
CREATE TEMP TABLE o ON COMMIT DROP AS
SELECT i AS id,
       CASE WHEN i % 10 = 0 THEN (i / 10) % :busy + 1
            ELSE (i * 7919::bigint) % :users + 1 END AS customer_id,
       (ARRAY['pending', 'confirmed', 'shipped'])[1 + (i / 7) % 3] AS status,
       timestamptz '2024-01-01 00:00:00.456Z' + i * interval '1 minute' AS created_at
FROM generate_series(1, :orders) i;

INSERT INTO order_items (order_id, product_id, quantity, price_cents)
SELECT o.id, p.id, 1 + (o.id + k) % 3, p.price_cents
FROM o
CROSS JOIN LATERAL generate_series(0, (o.id * 31 % 5)::int) k
JOIN products p ON p.id = (o.id * 13 + k * 1999) % :products + 1
ORDER BY o.id, p.id;

INSERT INTO orders (id, customer_id, status, total_cents, created_at)
SELECT o.id, o.customer_id, o.status, t.total, o.created_at
FROM o
JOIN (SELECT order_id, sum(quantity * price_cents) AS total
      FROM order_items GROUP BY order_id) t ON t.order_id = o.id
ORDER BY o.id;

ALTER TABLE users ADD CONSTRAINT users_email_key UNIQUE (email);
ALTER TABLE orders ADD PRIMARY KEY (id);
ALTER TABLE order_items ADD PRIMARY KEY (order_id, product_id);
ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES users (id);
ALTER TABLE order_items ADD FOREIGN KEY (order_id) REFERENCES orders (id);
ALTER TABLE order_items ADD FOREIGN KEY (product_id) REFERENCES products (id);
ALTER TABLE notifications ADD FOREIGN KEY (order_id) REFERENCES orders (id);
ALTER TABLE emails ADD FOREIGN KEY (user_id) REFERENCES users (id);

-- The composite index of the order list ("naive" drops it).
CREATE INDEX orders_customer_status_created
  ON orders (customer_id, status, created_at DESC, id DESC);

SELECT setval(pg_get_serial_sequence('users', 'id'), :users),
       setval(pg_get_serial_sequence('products', 'id'), :products),
       setval(pg_get_serial_sequence('orders', 'id'), :orders);
