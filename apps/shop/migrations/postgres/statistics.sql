-- A bulk load leaves the planner without statistics until autovacuum comes by, and without them it reads whole tables.
DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['users', 'products', 'orders', 'order_items'] LOOP
    IF pg_relation_size(t::regclass) > 0
       AND NOT EXISTS (SELECT FROM pg_stats WHERE tablename = t AND schemaname = current_schema()) THEN
      EXECUTE format('ANALYZE %I', t);
    END IF;
  END LOOP;
END $$;
