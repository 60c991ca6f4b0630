-- Adds each key that is missing, whatever it is called where it exists. Runs at every start.
DO $$
DECLARE
  -- table, kind, columns, the rest of the definition of a foreign key
  wanted constant text[][] := ARRAY[
    ['users',         'u', 'email',                ''],
    ['orders',        'p', 'id',                   ''],
    ['order_items',   'p', 'order_id, product_id', ''],
    ['orders',        'f', 'customer_id',          'REFERENCES users (id)'],
    ['order_items',   'f', 'order_id',             'REFERENCES orders (id)'],
    ['order_items',   'f', 'product_id',           'REFERENCES products (id)'],
    ['notifications', 'f', 'order_id',             'REFERENCES orders (id)'],
    ['emails',        'f', 'user_id',              'REFERENCES users (id)']
  ];
  w text[];
BEGIN
  FOREACH w SLICE 1 IN ARRAY wanted LOOP
    CONTINUE WHEN EXISTS (
      SELECT FROM pg_constraint c
      WHERE c.conrelid = w[1]::regclass AND c.contype = w[2]::"char"
        AND (w[2] = 'p' OR w[3] = (
          SELECT string_agg(a.attname, ', ' ORDER BY k.n)
          FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, n)
          JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum)));
    EXECUTE format('ALTER TABLE %I ADD %s (%s) %s', w[1],
      CASE w[2] WHEN 'u' THEN 'UNIQUE' WHEN 'p' THEN 'PRIMARY KEY' ELSE 'FOREIGN KEY' END, w[3], w[4]);
  END LOOP;
END $$;
