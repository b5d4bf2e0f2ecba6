-- Each trigger, constraint, unique index and column of :tables, those tables, and every function of the schema: its name,
-- its definition, and what is wrong with it. The schema's own name is left out.
WITH schema AS (
    SELECT oid, quote_ident(nspname) AS name FROM pg_namespace WHERE nspname = current_schema()
), kept AS (
    SELECT c.* FROM pg_class c JOIN schema ON schema.oid = c.relnamespace WHERE c.relname = ANY (:tables)
)
SELECT name, definition, wrong FROM (
SELECT
    1 AS part, relname, format('table %s', relname) AS name,
    concat_ws(
        ', ', CASE relkind WHEN 'r' THEN 'a table' ELSE 'no table' END,
        CASE relpersistence WHEN 'p' THEN 'logged' ELSE 'unlogged' END,
        CASE WHEN relrowsecurity THEN 'with row-level security' END,
        CASE WHEN relhassubclass THEN 'with tables that inherit' END,
        (SELECT 'rules: ' || string_agg(rulename, ', ') FROM pg_rewrite WHERE ev_class = kept.oid)
    ) AS definition,
    NULL::text AS wrong
FROM kept
UNION ALL
SELECT
    2, relname, format('column %s of %s', attname, relname),
    concat(
        format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN ' NOT NULL' END,
        CASE WHEN attidentity <> '' THEN ' GENERATED ' || CASE attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END END,
        CASE attgenerated WHEN '' THEN ' DEFAULT ' ELSE ' GENERATED ' END || pg_get_expr(adbin, adrelid)
    ), NULL
FROM kept
JOIN pg_attribute ON attrelid = kept.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
UNION ALL
SELECT
    3, relname, format('constraint %s on %s', conname, relname), pg_get_constraintdef(c.oid, true),
    CASE
        WHEN NOT convalidated THEN 'not valid: rows that were there may violate it'
        WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgenabled NOT IN ('O', 'A'))
            THEN 'disabled'
    END
FROM kept JOIN pg_constraint c ON c.conrelid = kept.oid
WHERE contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL
SELECT
    4, kept.relname, format('index %s on %s', index.relname, kept.relname), pg_get_indexdef(indexrelid, 0, true),
    CASE WHEN NOT (indisvalid AND indisready) THEN 'not valid' END
FROM kept JOIN pg_index ON indrelid = kept.oid JOIN pg_class index ON index.oid = indexrelid
WHERE indisunique AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
UNION ALL
SELECT
    5, relname, format('trigger %s on %s', tgname, relname), pg_get_triggerdef(t.oid, true),
    CASE WHEN tgenabled NOT IN ('O', 'A') THEN 'disabled' END
FROM kept JOIN pg_trigger t ON tgrelid = kept.oid
WHERE NOT tgisinternal
UNION ALL
SELECT
    6, '', format('function %s(%s)', proname, pg_get_function_identity_arguments(p.oid)),
    concat(
        'RETURNS ', pg_get_function_result(p.oid), ' LANGUAGE ', lanname,
        CASE provolatile WHEN 'i' THEN ' IMMUTABLE' WHEN 's' THEN ' STABLE' END,
        CASE WHEN proisstrict THEN ' STRICT' END, CASE WHEN prosecdef THEN ' SECURITY DEFINER' END,
        (
            SELECT string_agg(E'\nSET ' || replace(setting, 'search_path=' || schema.name, 'search_path=$schema'), '' ORDER BY setting)
            FROM unnest(proconfig) AS setting
        ),
        E'\nAS $$', rtrim(prosrc), '$$'
    ), NULL
FROM schema JOIN pg_proc p ON p.pronamespace = schema.oid JOIN pg_language l ON l.oid = prolang
WHERE NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
)
UNION ALL
-- where no trigger fires: in this session, or in those of a role or a database
SELECT 7, '', 'setting session_replication_role', 'replica', NULL WHERE current_setting('session_replication_role') = 'replica'
UNION ALL
SELECT 7, '', format('setting session_replication_role of %s', CASE WHEN setrole = 0 THEN 'the database' ELSE 'role ' || setrole::regrole END), 'replica', NULL
FROM pg_db_role_setting
WHERE 'session_replication_role=replica' = ANY (setconfig)
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
) found
ORDER BY part, relname COLLATE "C", name COLLATE "C"
