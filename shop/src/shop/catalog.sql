-- List the objects of the current schema: tables, columns, constraints, indexes, triggers, policies, functions and
-- settings. Each has a definition, which doesn't contain the name of the schema. `problem` is set for an object that is
-- disabled or not valid. With the parameter :tables, objects of other tables are left out. NULL means all tables.
-- Functions and settings are always listed.
--
-- is_guarded is false for an object that enforces no rule, such as an index that isn't unique.
WITH schema AS (
    SELECT oid, quote_ident(nspname) AS name FROM pg_namespace WHERE nspname = current_schema()
), kept AS (
    SELECT c.* FROM pg_class c JOIN schema ON schema.oid = c.relnamespace
    WHERE CASE
        WHEN CAST(:tables AS text[]) IS NULL THEN relkind IN ('r', 'p', 'v', 'm', 'f') AND relname <> 'alembic_version'
        ELSE relname = ANY (CAST(:tables AS text[]))
    END
)
SELECT name, definition, problem, is_guarded FROM (
SELECT
    1 AS part, relname, format('table %s', relname) AS name,
    concat_ws(
        ', ', CASE relkind WHEN 'r' THEN 'a table' ELSE 'no table' END,
        CASE relpersistence WHEN 'p' THEN 'logged' ELSE 'unlogged' END,
        CASE WHEN relrowsecurity THEN 'with row-level security' END,
        CASE WHEN relforcerowsecurity THEN 'for its owner, too' END,
        CASE WHEN relhassubclass THEN 'with tables that inherit' END,
        (SELECT 'rules: ' || string_agg(rulename, ', ') FROM pg_rewrite WHERE ev_class = kept.oid)
    ) AS definition,
    NULL::text AS problem, true AS is_guarded
FROM kept
UNION ALL
SELECT
    2, relname, format('column %s of %s', attname, relname),
    concat(
        format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN ' NOT NULL' END,
        CASE WHEN attidentity <> '' THEN ' GENERATED ' || CASE attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END END,
        CASE attgenerated WHEN '' THEN ' DEFAULT ' ELSE ' GENERATED ' END || pg_get_expr(adbin, adrelid)
    ), NULL, true
FROM kept
JOIN pg_attribute ON attrelid = kept.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
UNION ALL
SELECT
    3, relname, format('constraint %s on %s', conname, relname), pg_get_constraintdef(c.oid, true),
    CASE
        WHEN NOT convalidated THEN 'not valid: existing rows may violate it'
        WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgenabled NOT IN ('O', 'A'))
            THEN 'disabled'
    END, true
FROM kept JOIN pg_constraint c ON c.conrelid = kept.oid
WHERE contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL
SELECT
    4, kept.relname, format('index %s on %s', index.relname, kept.relname), pg_get_indexdef(indexrelid, 0, true),
    CASE WHEN NOT (indisvalid AND indisready) THEN 'not valid' END, indisunique
FROM kept JOIN pg_index ON indrelid = kept.oid JOIN pg_class index ON index.oid = indexrelid
WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
UNION ALL
SELECT
    5, relname, format('trigger %s on %s', tgname, relname), pg_get_triggerdef(t.oid, true),
    CASE WHEN tgenabled NOT IN ('O', 'A') THEN 'disabled' END, true
FROM kept JOIN pg_trigger t ON tgrelid = kept.oid
WHERE NOT tgisinternal
UNION ALL
SELECT
    6, relname, format('policy %s on %s', polname, relname),
    concat(
        CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
        ' FOR ', CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
        ' TO ', (SELECT string_agg(CASE role WHEN 0 THEN 'PUBLIC' ELSE role::regrole::text END, ', ' ORDER BY role::regrole::text) FROM unnest(polroles) AS role),
        ' USING (' || pg_get_expr(polqual, polrelid, true) || ')',
        ' WITH CHECK (' || pg_get_expr(polwithcheck, polrelid, true) || ')'
    ), NULL, true
FROM kept JOIN pg_policy ON polrelid = kept.oid
UNION ALL
SELECT 7, relname, format('options of %s', relname), array_to_string(reloptions, ', '), NULL, false
FROM kept WHERE reloptions IS NOT NULL
UNION ALL
SELECT
    7, relname, format('storage of %s of %s', attname, relname),
    CASE attstorage WHEN 'p' THEN 'plain' WHEN 'e' THEN 'external' WHEN 'm' THEN 'main' ELSE 'extended' END, NULL, false
FROM kept
JOIN pg_attribute ON attrelid = kept.oid AND attnum > 0 AND NOT attisdropped
JOIN pg_type ON pg_type.oid = atttypid
WHERE attstorage <> typstorage
UNION ALL
SELECT 7, relname, format('firing of %s on %s', tgname, relname), 'always', NULL, false
FROM kept JOIN pg_trigger ON tgrelid = kept.oid
WHERE NOT tgisinternal AND tgenabled = 'A'
UNION ALL
SELECT 7, relname, format('view %s', relname), pg_get_viewdef(oid, true), NULL, false
FROM kept WHERE relkind IN ('v', 'm')
UNION ALL
SELECT
    8, '', format('function %s(%s)', proname, pg_get_function_identity_arguments(p.oid)),
    concat(
        'RETURNS ', pg_get_function_result(p.oid), ' LANGUAGE ', lanname,
        CASE provolatile WHEN 'i' THEN ' IMMUTABLE' WHEN 's' THEN ' STABLE' END,
        CASE proparallel WHEN 's' THEN ' PARALLEL SAFE' WHEN 'r' THEN ' PARALLEL RESTRICTED' END,
        CASE WHEN proisstrict THEN ' STRICT' END, CASE WHEN proleakproof THEN ' LEAKPROOF' END,
        CASE WHEN prosecdef THEN ' SECURITY DEFINER' END,
        (
            SELECT string_agg(E'\nSET ' || replace(setting, 'search_path=' || schema.name, 'search_path=$schema'), '' ORDER BY setting)
            FROM unnest(proconfig) AS setting
        ),
        E'\nAS $$', rtrim(prosrc), '$$'
    ), NULL, true
FROM schema JOIN pg_proc p ON p.pronamespace = schema.oid JOIN pg_language l ON l.oid = prolang
WHERE NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
)
UNION ALL
-- With this setting no trigger fires. It may be set in this session, for a role, or for a database.
SELECT 9, '', 'setting session_replication_role', 'replica', NULL, true
WHERE current_setting('session_replication_role') = 'replica'
UNION ALL
SELECT
    9, '',
    format('setting session_replication_role of %s', CASE WHEN setrole = 0 THEN 'the database' ELSE 'role ' || setrole::regrole END),
    'replica', NULL, true
FROM pg_db_role_setting
WHERE 'session_replication_role=replica' = ANY (setconfig)
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
) found
ORDER BY part, relname COLLATE "C", name COLLATE "C"
