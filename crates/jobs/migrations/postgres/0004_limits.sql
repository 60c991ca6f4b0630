-- What holds for a named queue in the whole fleet. A queue without a row is plain.
CREATE TABLE greenwave_jobs_queues (
    name   text    PRIMARY KEY,
    paused boolean NOT NULL DEFAULT false,
    limits jsonb
);

-- Whose turn it is among the keys of a queue, and how full its bucket is. Apart from the table above, because each
-- fetch under limits writes here, and each fetch at all reads there.
CREATE TABLE greenwave_jobs_turns (
    queue       text PRIMARY KEY,
    last_key    text NOT NULL,
    tokens      float8,
    refilled_at timestamptz
) WITH (fillfactor = 10);

-- Which job has a unique key, until when at most (null: no such time), and in which states it holds it:
-- 1 waiting + 2 running + 4 completed + 8 dead. Nothing is written here when a job ends: whoever next wants the key
-- looks what became of its job.
CREATE TABLE greenwave_jobs_unique (
    name   text     NOT NULL,
    key    text     NOT NULL,
    job_id bigint   NOT NULL,
    until  timestamptz,
    states smallint NOT NULL,
    PRIMARY KEY (name, key)
);

-- True if a job holds its key.
CREATE FUNCTION greenwave_jobs_holds(in_job bigint, in_until timestamptz, in_states smallint) RETURNS boolean
LANGUAGE sql AS $$
    SELECT (in_until IS NULL OR in_until > clock_timestamp()) AND in_states & coalesce(
        (SELECT CASE state WHEN 2 THEN 2 ELSE 1 END FROM greenwave_jobs WHERE id = in_job),
        (SELECT 8 FROM greenwave_jobs_dead WHERE id = in_job),
        4) <> 0
$$;

-- Claims unique keys, each for the job id beside it, and answers for each with the job that has it now. Give no key
-- twice. A function, because each of its statements sees what was committed before it began: a key that was waited
-- for is judged by the job that its last owner has stored. Keys are locked in their order, so that batches with the
-- same keys wait for each other and do not deadlock.
CREATE FUNCTION greenwave_jobs_claim(
    in_names text[], in_keys text[], in_ids bigint[], in_windows bigint[], in_states smallint[])
RETURNS TABLE (claim bigint, holder bigint)
LANGUAGE plpgsql SET jit = off SET enable_seqscan = off AS $$
DECLARE
    one record;
    found_id bigint;
BEGIN
    FOR one IN
        SELECT c.name, c.key, c.id, c.states,
            clock_timestamp() + c.window_ms * interval '1 millisecond' AS until
        FROM unnest(in_names, in_keys, in_ids, in_windows, in_states) AS c (name, key, id, window_ms, states)
        ORDER BY c.name, c.key
    LOOP
        claim := one.id;
        LOOP
            -- The usual duplicate is seen without a lock.
            SELECT u.job_id INTO holder FROM greenwave_jobs_unique u
            WHERE u.name = one.name AND u.key = one.key AND greenwave_jobs_holds(u.job_id, u.until, u.states);
            EXIT WHEN FOUND;
            INSERT INTO greenwave_jobs_unique AS u (name, key, job_id, until, states)
            VALUES (one.name, one.key, one.id, one.until, one.states)
            ON CONFLICT (name, key) DO NOTHING
            RETURNING u.job_id INTO holder;
            EXIT WHEN FOUND;
            -- Taken, perhaps by a job that holds it no more. The lock makes sure that it stays as it is; the next
            -- statement sees the job. Nothing to lock: upkeep has just removed it.
            SELECT u.job_id INTO found_id FROM greenwave_jobs_unique u
            WHERE u.name = one.name AND u.key = one.key FOR UPDATE;
            CONTINUE WHEN NOT FOUND;
            UPDATE greenwave_jobs_unique u SET job_id = one.id, until = one.until, states = one.states
            WHERE u.name = one.name AND u.key = one.key
                AND NOT greenwave_jobs_holds(u.job_id, u.until, u.states)
            RETURNING u.job_id INTO holder;
            EXIT WHEN FOUND;
            holder := found_id;
            EXIT;
        END LOOP;
        RETURN NEXT;
    END LOOP;
END $$;

-- Waits for the lock of a queue, but not for long: false if it is not to be had.
CREATE FUNCTION greenwave_jobs_lock(in_queue text) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
BEGIN
    -- "gwjq" in ASCII.
    PERFORM pg_advisory_xact_lock(1735879281, hashtext(in_queue));
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

-- The keys of ready jobs after one of them, in order, and at most so many that have fewer than `in_max` running.
-- From key to key in one step of the index, whatever stands between them.
CREATE FUNCTION greenwave_jobs_keys(in_queue text, in_after text, in_want integer, in_running jsonb, in_max integer)
RETURNS text[]
LANGUAGE plpgsql SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN ARRAY(
        WITH RECURSIVE step (key, taken, free) AS (
            SELECT in_after, 0, false
            UNION ALL
            SELECT next.key, step.taken + next.free::integer, next.free
            FROM step CROSS JOIN LATERAL (
                SELECT j.key, in_max IS NULL OR coalesce((in_running ->> j.key)::integer, 0) < in_max AS free
                FROM greenwave_jobs j
                WHERE j.state = 0 AND j.key IS NOT NULL AND j.queue = in_queue AND j.key > step.key
                ORDER BY j.key LIMIT 1) AS next
            WHERE step.taken < in_want)
        SELECT key FROM step WHERE free ORDER BY key);
END $$;

-- Completes jobs; then, under the lock of the queue, leases ready ones as its limits allow, its keys by turns. Answers
-- with a row for each, and a last one that says how many were completed, and in how long to ask again if a limit
-- holds back what is ready.
CREATE FUNCTION greenwave_jobs_fetch(
    in_queue text, in_want integer, in_lease_ms bigint, in_done bigint[], in_done_leases bigint[])
RETURNS TABLE (turn bigint, job greenwave_jobs, completed bigint, again_ms bigint)
LANGUAGE plpgsql SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    done         bigint := 0;
    again        bigint;
    rule         greenwave_jobs_queues;
    mine         greenwave_jobs_turns;
    room         integer := in_want;
    max_per_key  integer;
    total        bigint;
    running_keys jsonb := '{}';
    name_room    jsonb := '{}';
    blocked      text[] := '{}';
    per_second   float8;
    after        text;
    start        text;
    wrapped      boolean := false;
    over         boolean := false;
    asked        integer;
    found        text[];
    served       text;
    lanes        text[];
    share        integer;
    lease        bigint;
    turns        bigint := 0;
    ids          bigint[];
    got_keys     jsonb;
    got_names    jsonb;
    next_lanes   text[];
    last_served  text;
BEGIN
    IF cardinality(in_done) > 0 THEN
        DELETE FROM greenwave_jobs j
        USING unnest(in_done, in_done_leases) AS d (id, lease_id)
        WHERE j.id = ANY(in_done) AND j.id = d.id AND j.lease_id = d.lease_id;
        GET DIAGNOSTICS done = ROW_COUNT;
    END IF;
    IF NOT pg_try_advisory_xact_lock(1735879281, hashtext(in_queue)) AND NOT greenwave_jobs_lock(in_queue) THEN
        RETURN QUERY SELECT NULL::bigint, NULL::greenwave_jobs, done, 10::bigint;
        RETURN;
    END IF;
    SELECT * INTO rule FROM greenwave_jobs_queues q WHERE q.name = in_queue;
    IF rule.paused THEN
        RETURN QUERY SELECT NULL::bigint, NULL::greenwave_jobs, done, NULL::bigint;
        RETURN;
    END IF;
    SELECT * INTO mine FROM greenwave_jobs_turns t WHERE t.queue = in_queue;

    max_per_key := (rule.limits ->> 'max_running_per_key')::integer;
    IF rule.limits ?| '{max_running,max_running_per_key,max_running_per_job}' THEN
        -- A lease that has ended is no longer run: its worker has dropped the job, or is gone.
        WITH running AS MATERIALIZED (
            SELECT j.key, j.name, count(*) AS jobs FROM greenwave_jobs j
            WHERE j.state = 2 AND j.lease_until > clock_timestamp() AND j.queue = in_queue
            GROUP BY j.key, j.name)
        SELECT (SELECT coalesce(sum(r.jobs), 0) FROM running r),
            (SELECT coalesce(jsonb_object_agg(k.key, k.jobs), '{}') FROM (
                SELECT r.key, sum(r.jobs) AS jobs FROM running r WHERE r.key IS NOT NULL GROUP BY r.key) k),
            (SELECT coalesce(jsonb_object_agg(m.key, m.value::integer - coalesce(n.jobs, 0)), '{}')
             FROM jsonb_each_text(coalesce(rule.limits -> 'max_running_per_job', '{}')) m
             LEFT JOIN (SELECT r.name, sum(r.jobs) AS jobs FROM running r GROUP BY r.name) n ON n.name = m.key)
        INTO total, running_keys, name_room;
        room := least(room, (rule.limits ->> 'max_running')::bigint - total);
    END IF;
    IF rule.limits ? 'rate' THEN
        per_second := (rule.limits #>> '{rate,jobs}')::float8 / (rule.limits #>> '{rate,per_ms}')::float8 * 1000;
        mine.tokens := least((rule.limits #>> '{rate,jobs}')::float8, coalesce(mine.tokens
            + greatest(extract(epoch FROM clock_timestamp() - mine.refilled_at)::float8, 0) * per_second,
            (rule.limits #>> '{rate,jobs}')::float8));
        mine.refilled_at := clock_timestamp();
        room := least(room, floor(mine.tokens));
    ELSE
        mine.tokens := NULL;
    END IF;

    last_served := coalesce(mine.last_key, '');
    after := last_served;
    start := last_served;
    WHILE room > 0 AND NOT over LOOP
        -- Lanes: the keys after the one that was served last, then the jobs without a key (null), then the other keys;
        -- as many as there is room, and more only if these do not fill it.
        lanes := '{}';
        WHILE NOT over AND cardinality(lanes) < room LOOP
            asked := room - cardinality(lanes);
            found := greenwave_jobs_keys(in_queue, after, asked, running_keys, max_per_key);
            IF cardinality(found) = asked THEN
                after := found[asked];
                over := wrapped AND after >= start;
            ELSIF wrapped OR start = '' THEN
                over := true;
            END IF;
            lanes := lanes || ARRAY(SELECT k FROM unnest(found) k WHERE NOT wrapped OR k <= start);
            IF cardinality(found) < asked AND NOT wrapped THEN
                lanes := lanes || NULL::text;
                wrapped := true;
                after := '';
            END IF;
        END LOOP;

        -- Each round gives every lane the same share, and what some leave over is for the others.
        WHILE room > 0 AND cardinality(lanes) > 0 LOOP
            share := ceil(room::float8 / cardinality(lanes));
            blocked := ARRAY(SELECT n.key FROM jsonb_each_text(name_room) n WHERE n.value::integer <= 0);
            WITH offered AS MATERIALIZED (
                SELECT o.id, o.name, o.rank, lane.key, lane.ord,
                    row_number() OVER (PARTITION BY o.name ORDER BY o.rank, lane.ord) AS nth
                FROM unnest(lanes) WITH ORDINALITY AS lane (key, ord)
                CROSS JOIN LATERAL (
                    SELECT k.id, k.name, row_number() OVER (ORDER BY k.priority, k.position) AS rank FROM (
                        SELECT j.id, j.name, j.priority, j.position FROM greenwave_jobs j
                        WHERE j.state = 0 AND j.key IS NOT NULL AND j.queue = in_queue AND j.key = lane.key
                            AND j.name <> ALL(blocked)
                        ORDER BY j.priority, j.position
                        LIMIT least(share, max_per_key - coalesce((running_keys ->> lane.key)::integer, 0))
                        FOR UPDATE SKIP LOCKED) k
                    UNION ALL
                    SELECT k.id, k.name, row_number() OVER (ORDER BY k.priority, k.position) AS rank FROM (
                        SELECT j.id, j.name, j.priority, j.position FROM greenwave_jobs j
                        WHERE lane.key IS NULL AND j.state = 0 AND j.key IS NULL AND j.queue = in_queue
                            AND j.name <> ALL(blocked)
                        ORDER BY j.priority, j.position LIMIT share
                        FOR UPDATE SKIP LOCKED) k) o),
            taken AS MATERIALIZED (
                SELECT o.* FROM offered o WHERE o.nth <= coalesce((name_room ->> o.name)::integer, room)
                ORDER BY o.rank, o.ord LIMIT room)
            SELECT ARRAY(SELECT t.id FROM taken t ORDER BY t.rank, t.ord),
                (SELECT coalesce(t.key, '') FROM taken t ORDER BY t.rank DESC, t.ord DESC LIMIT 1),
                ARRAY(SELECT o.key FROM offered o GROUP BY o.key, o.ord HAVING count(*) >= share ORDER BY o.ord),
                (SELECT jsonb_object_agg(k.key, k.jobs + coalesce((running_keys ->> k.key)::integer, 0)) FROM (
                    SELECT t.key, count(*) AS jobs FROM taken t
                    WHERE max_per_key IS NOT NULL AND t.key IS NOT NULL GROUP BY t.key) k),
                (SELECT jsonb_object_agg(n.name, (name_room ->> n.name)::integer - n.jobs) FROM (
                    SELECT t.name, count(*) AS jobs FROM taken t WHERE name_room ? t.name GROUP BY t.name) n)
            INTO ids, served, next_lanes, got_keys, got_names;
            EXIT WHEN cardinality(ids) = 0;

            lease := coalesce(lease, nextval('greenwave_jobs_lease'));
            RETURN QUERY
                UPDATE greenwave_jobs j
                SET state = 2, lease_id = lease,
                    lease_until = clock_timestamp() + in_lease_ms * interval '1 millisecond'
                FROM unnest(ids) WITH ORDINALITY AS t (id, ord)
                WHERE j.id = ANY(ids) AND j.id = t.id
                RETURNING turns + t.ord, j, NULL::bigint, NULL::bigint;
            turns := turns + cardinality(ids);
            room := room - cardinality(ids);
            last_served := served;
            lanes := next_lanes;
            running_keys := running_keys || coalesce(got_keys, '{}');
            name_room := name_room || coalesce(got_names, '{}');
        END LOOP;
    END LOOP;

    -- When no job is left it does not matter whose turn it is.
    IF turns > 0 AND (room = 0 OR per_second IS NOT NULL) THEN
        mine.tokens := mine.tokens - turns;
        INSERT INTO greenwave_jobs_turns AS t (queue, last_key, tokens, refilled_at)
        VALUES (in_queue, last_served, mine.tokens, mine.refilled_at)
        ON CONFLICT (queue) DO UPDATE
        SET last_key = excluded.last_key, tokens = excluded.tokens, refilled_at = excluded.refilled_at;
    END IF;
    IF mine.tokens < 1 THEN
        -- Not for each token of a fast bucket: a fetch shall be worth its while.
        again := greatest(ceil((1 - mine.tokens) / per_second * 1000), 10);
    END IF;
    RETURN QUERY SELECT NULL::bigint, NULL::greenwave_jobs, done, again;
END $$;
