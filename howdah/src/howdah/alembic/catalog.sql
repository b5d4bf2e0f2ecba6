-- List the objects of some schemas: tables, columns, constraints, indexes, triggers, policies, views, types, sequences,
-- functions, comments and settings. Each has a definition, which doesn't contain the name of the current schema.
-- `problem` is set for an object that is disabled or not valid. is_guarded is false for an object that enforces no rule,
-- such as an index that isn't unique. `subject` is the table, function or type to which the object belongs.
--
-- The parameter tables: objects of other tables are left out; NULL means all tables. Functions and settings are always listed
-- The parameter schemas: names of schemas; NULL means the current schema
--
-- create_sql and drop_sql create and drop the object. alter_sql are statements that give an object of this name this
-- definition; those that another definition has too needn't be executed. PostgreSQL computes these columns only if they
-- are selected.
WITH schema AS (
    SELECT oid, quote_ident(nspname) AS name, CASE WHEN nspname <> current_schema() THEN quote_ident(nspname) || '.' ELSE '' END AS prefix
    FROM pg_namespace
    WHERE CASE WHEN CAST(:schemas AS text[]) IS NULL THEN nspname = current_schema() ELSE nspname = ANY (CAST(:schemas AS text[])) END
), kept AS (
    SELECT c.*, prefix, prefix || relname AS label, prefix || quote_ident(relname) AS ident
    FROM pg_class c JOIN schema ON schema.oid = c.relnamespace
    WHERE CASE
        WHEN CAST(:tables AS text[]) IS NULL THEN relkind IN ('r', 'p', 'v', 'm', 'f') AND relname <> 'alembic_version'
        ELSE relname = ANY (CAST(:tables AS text[]))
    END
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
)
SELECT {columns} FROM (
SELECT
    1 AS part, label AS subject, format('table %s', label) AS name,
    concat_ws(
        ', ', CASE relkind WHEN 'r' THEN 'a table' WHEN 'p' THEN 'a table partitioned by ' || pg_get_partkeydef(oid) ELSE 'no table' END,
        CASE relpersistence WHEN 'p' THEN 'logged' ELSE 'unlogged' END,
        CASE WHEN relrowsecurity THEN 'with row-level security' END,
        CASE WHEN relforcerowsecurity THEN 'for its owner, too' END,
        CASE WHEN relhassubclass AND relkind <> 'p' THEN 'with tables that inherit' END,
        'for values ' || pg_get_expr(relpartbound, oid),
        (SELECT 'rules: ' || string_agg(rulename, ', ' ORDER BY rulename) FROM pg_rewrite WHERE ev_class = kept.oid)
    ) AS definition,
    NULL::text AS problem, true AS is_guarded,
    NULL::text AS create_sql, NULL::text AS drop_sql,
    CASE WHEN relkind IN ('r', 'p') THEN ARRAY[
        format('ALTER TABLE %s SET %s', ident, CASE relpersistence WHEN 'p' THEN 'LOGGED' ELSE 'UNLOGGED' END),
        format('ALTER TABLE %s %s ROW LEVEL SECURITY', ident, CASE WHEN relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END),
        format('ALTER TABLE %s %s ROW LEVEL SECURITY', ident, CASE WHEN relforcerowsecurity THEN 'FORCE' ELSE 'NO FORCE' END)
    ] END AS alter_sql
FROM kept
UNION ALL
SELECT
    2, label, format('column %s of %s', attname, label),
    concat(
        format_type(atttypid, atttypmod),
        CASE WHEN attcollation <> typcollation THEN ' COLLATE ' || attcollation::regcollation END,
        CASE WHEN attnotnull THEN ' NOT NULL' END,
        CASE WHEN attidentity <> '' THEN ' GENERATED ' || CASE attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END END,
        CASE attgenerated WHEN '' THEN ' DEFAULT ' WHEN 'v' THEN ' GENERATED VIRTUAL ' ELSE ' GENERATED ' END || pg_get_expr(adbin, adrelid)
    ), NULL, true,
    NULL, NULL,
    CASE WHEN relkind IN ('r', 'p') AND attidentity = '' AND attgenerated = '' THEN ARRAY[
        format(
            'ALTER TABLE %s ALTER COLUMN %I TYPE %s%s', ident, attname, format_type(atttypid, atttypmod),
            CASE WHEN attcollation <> typcollation THEN ' COLLATE ' || attcollation::regcollation END
        ),
        format('ALTER TABLE %s ALTER COLUMN %I %s', ident, attname, coalesce('SET DEFAULT ' || pg_get_expr(adbin, adrelid), 'DROP DEFAULT')),
        format('ALTER TABLE %s ALTER COLUMN %I %s NOT NULL', ident, attname, CASE WHEN attnotnull THEN 'SET' ELSE 'DROP' END)
    ] END
FROM kept
JOIN pg_attribute ON attrelid = kept.oid AND attnum > 0 AND NOT attisdropped
JOIN pg_type ON pg_type.oid = atttypid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
UNION ALL
SELECT
    3, label, format('constraint %s on %s', conname, label), pg_get_constraintdef(c.oid, true),
    CASE
        WHEN NOT convalidated THEN 'not valid: existing rows may violate it'
        WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgenabled NOT IN ('O', 'A'))
            THEN 'disabled'
    END, true,
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', ident, conname, pg_get_constraintdef(c.oid, true)),
    format('ALTER TABLE %s DROP CONSTRAINT %I', ident, conname), NULL
FROM kept JOIN pg_constraint c ON c.conrelid = kept.oid
WHERE contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL
SELECT
    4, label, format('index %s on %s', index.relname, label), pg_get_indexdef(indexrelid, 0, true),
    CASE WHEN NOT (indisvalid AND indisready) THEN 'not valid' END, indisunique,
    pg_get_indexdef(indexrelid, 0, true), format('DROP INDEX %s%I', prefix, index.relname), NULL
FROM kept JOIN pg_index ON indrelid = kept.oid JOIN pg_class index ON index.oid = indexrelid
WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
UNION ALL
SELECT
    5, label, format('trigger %s on %s', tgname, label), pg_get_triggerdef(t.oid, true),
    CASE WHEN tgenabled NOT IN ('O', 'A') THEN 'disabled' END, true,
    pg_get_triggerdef(t.oid, true), format('DROP TRIGGER %I ON %s', tgname, ident), NULL
FROM kept JOIN pg_trigger t ON tgrelid = kept.oid
WHERE NOT tgisinternal
UNION ALL
SELECT
    6, label, format('policy %s on %s', polname, label),
    concat(mode, ' FOR ', command, ' TO ', roles, ' USING (' || read_criteria || ')', ' WITH CHECK (' || write_criteria || ')'),
    NULL, true,
    concat(
        format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', polname, ident, mode, command, roles),
        ' USING (' || read_criteria || ')', ' WITH CHECK (' || write_criteria || ')'
    ),
    format('DROP POLICY %I ON %s', polname, ident), NULL
FROM kept JOIN pg_policy ON polrelid = kept.oid
CROSS JOIN LATERAL (
    SELECT
        CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END AS mode,
        CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END AS command,
        (SELECT string_agg(CASE role WHEN 0 THEN 'PUBLIC' ELSE role::regrole::text END, ', ' ORDER BY role::regrole::text) FROM unnest(polroles) AS role) AS roles,
        pg_get_expr(polqual, polrelid, true) AS read_criteria,
        pg_get_expr(polwithcheck, polrelid, true) AS write_criteria
) parts
UNION ALL
SELECT
    7, label, format('options of %s', label), array_to_string(reloptions, ', '), NULL, false,
    format('ALTER TABLE %s SET (%s)', ident, array_to_string(reloptions, ', ')),
    format('ALTER TABLE %s RESET (%s)', ident, (SELECT string_agg(split_part(option, '=', 1), ', ') FROM unnest(reloptions) AS option)), NULL
FROM kept WHERE reloptions IS NOT NULL
UNION ALL
SELECT
    7, label, format('storage of %s of %s', attname, label), lower(storage), NULL, false,
    format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE %s', ident, attname, storage),
    format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE DEFAULT', ident, attname), NULL
FROM kept
JOIN pg_attribute ON attrelid = kept.oid AND attnum > 0 AND NOT attisdropped
JOIN pg_type ON pg_type.oid = atttypid
CROSS JOIN LATERAL (
    SELECT CASE attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END AS storage
) named
WHERE attstorage <> typstorage
UNION ALL
SELECT
    7, label, format('firing of %s on %s', tgname, label), 'always', NULL, false,
    format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', ident, tgname), format('ALTER TABLE %s ENABLE TRIGGER %I', ident, tgname), NULL
FROM kept JOIN pg_trigger ON tgrelid = kept.oid
WHERE NOT tgisinternal AND tgenabled = 'A'
UNION ALL
SELECT 7, label, format('view %s', label), pg_get_viewdef(oid, true), NULL, false, NULL, NULL, NULL
FROM kept WHERE relkind IN ('v', 'm')
UNION ALL
SELECT
    7, label, format('comment on %s%s', attname || ' of ', label), description, NULL, false,
    format('COMMENT ON %s %s IS %L', kind, target, description), format('COMMENT ON %s %s IS NULL', kind, target),
    ARRAY[format('COMMENT ON %s %s IS %L', kind, target, description)]
FROM kept
JOIN pg_description ON objoid = kept.oid AND classoid = 'pg_class'::regclass
LEFT JOIN pg_attribute ON attrelid = kept.oid AND attnum = objsubid AND objsubid > 0
CROSS JOIN LATERAL (
    SELECT CASE WHEN attname IS NULL THEN 'TABLE' ELSE 'COLUMN' END AS kind, concat(ident, '.' || quote_ident(attname)) AS target
) commented
WHERE relkind IN ('r', 'p')
UNION ALL
SELECT
    0, prefix || typname, format('type %s%s', prefix, typname), 'ENUM (' || labels || ')', NULL, true,
    format('CREATE TYPE %s%I AS ENUM (%s)', prefix, typname, labels), format('DROP TYPE %s%I', prefix, typname),
    (
        SELECT array_agg(statement ORDER BY enumsortorder) FROM (
            SELECT
                enumsortorder,
                format('ALTER TYPE %s%I ADD VALUE IF NOT EXISTS %L', prefix, typname, enumlabel)
                || coalesce(format(' AFTER %L', lag(enumlabel) OVER (ORDER BY enumsortorder)), '') AS statement
            FROM pg_enum WHERE enumtypid = t.oid
        ) added
    )
FROM schema JOIN pg_type t ON t.typnamespace = schema.oid AND typtype = 'e'
CROSS JOIN LATERAL (
    SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) AS labels FROM pg_enum WHERE enumtypid = t.oid
) listed
WHERE CAST(:tables AS text[]) IS NULL
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_type'::regclass AND objid = t.oid AND deptype = 'e')
UNION ALL
SELECT
    0, prefix || typname, format('type %s%s', prefix, typname), 'DOMAIN ' || described, NULL, true,
    format('CREATE DOMAIN %s%I AS %s', prefix, typname, described), format('DROP DOMAIN %s%I', prefix, typname), NULL
FROM schema JOIN pg_type t ON t.typnamespace = schema.oid AND typtype = 'd'
CROSS JOIN LATERAL (
    SELECT concat_ws(
        ' ', format_type(typbasetype, typtypmod), CASE WHEN typnotnull THEN 'NOT NULL' END, 'DEFAULT ' || typdefault,
        (
            SELECT string_agg(format('CONSTRAINT %I %s', conname, pg_get_constraintdef(c.oid, true)), ' ' ORDER BY conname)
            FROM pg_constraint c WHERE contypid = t.oid AND contype = 'c'
        )
    ) AS described
) listed
WHERE CAST(:tables AS text[]) IS NULL
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_type'::regclass AND objid = t.oid AND deptype = 'e')
UNION ALL
SELECT
    0, prefix || s.relname, format('sequence %s%s', prefix, s.relname),
    format('%s INCREMENT %s MINVALUE %s MAXVALUE %s START %s CACHE %s%s', format_type(seqtypid, NULL), seqincrement, seqmin, seqmax, seqstart, seqcache, CASE WHEN seqcycle THEN ' CYCLE' END),
    NULL, true,
    format(
        'CREATE SEQUENCE %s%I AS %s INCREMENT %s MINVALUE %s MAXVALUE %s START %s CACHE %s%s', prefix, s.relname,
        format_type(seqtypid, NULL), seqincrement, seqmin, seqmax, seqstart, seqcache, CASE WHEN seqcycle THEN ' CYCLE' END
    ), format('DROP SEQUENCE %s%I', prefix, s.relname), NULL
FROM schema JOIN pg_class s ON s.relnamespace = schema.oid AND s.relkind = 'S' JOIN pg_sequence ON seqrelid = s.oid
-- the sequence of an identity or serial column belongs to that column
WHERE CAST(:tables AS text[]) IS NULL
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = s.oid AND deptype IN ('a', 'i', 'e'))
UNION ALL
SELECT 0, '', format('extension %s', extname), 'an extension', NULL, true, format('CREATE EXTENSION IF NOT EXISTS %I', extname), NULL, NULL
FROM pg_extension WHERE extname <> 'plpgsql' AND CAST(:tables AS text[]) IS NULL
UNION ALL
SELECT
    8, prefix || proname, format('function %s%s(%s)', prefix, proname, pg_get_function_identity_arguments(p.oid)),
    concat(
        CASE prokind WHEN 'p' THEN 'PROCEDURE ' WHEN 'a' THEN 'AGGREGATE ' END,
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
    ), NULL, true,
    NULL,
    format(
        'DROP %s %s%I(%s)', CASE prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END,
        prefix, proname, pg_get_function_identity_arguments(p.oid)
    ), NULL
FROM schema JOIN pg_proc p ON p.pronamespace = schema.oid JOIN pg_language l ON l.oid = prolang
WHERE NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
)
UNION ALL
-- With this setting no trigger fires. It may be set in this session, for a role, or for a database.
SELECT 9, '', 'setting session_replication_role', 'replica', NULL, true, NULL, NULL, NULL
WHERE current_setting('session_replication_role') = 'replica'
UNION ALL
SELECT
    9, '',
    format('setting session_replication_role of %s', CASE WHEN setrole = 0 THEN 'the database' ELSE 'role ' || setrole::regrole END),
    'replica', NULL, true, NULL, NULL, NULL
FROM pg_db_role_setting
WHERE 'session_replication_role=replica' = ANY (setconfig)
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
) found
ORDER BY part, subject COLLATE "C", name COLLATE "C"
