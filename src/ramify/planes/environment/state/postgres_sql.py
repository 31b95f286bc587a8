"""What the `postgres` driver says to a server: how it looks at a database, and what it changes."""

from __future__ import annotations

SETTINGS = (
    "-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres -c extra_float_digits=3 "
    "-c bytea_output=hex -c client_encoding=UTF8 -c client_min_messages=error "
    "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
)
"""PGOPTIONS: equal values are printed alike, whatever the server or the role is set to."""

_OURS = """
    n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
    AND c.relpersistence <> 't' AND NOT EXISTS (
        SELECT FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
_RELATIONS = f"pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_OURS}"

DATABASES = """
COPY (SELECT row_to_json(x) FROM (
  SELECT d.datname AS name, pg_get_userbyid(d.datdba) AS owner, d.datacl::text AS acl,
    pg_encoding_to_char(d.encoding) AS encoding, d.datcollate AS "collate", d.datctype AS ctype,
    d.datconnlimit AS connections,
    coalesce((SELECT s.setconfig FROM pg_db_role_setting s
              WHERE s.setdatabase = d.oid AND s.setrole = 0), '{}') AS settings
  FROM pg_database d WHERE NOT d.datistemplate AND d.datallowconn ORDER BY 1) x) TO STDOUT;
"""

SUPERUSER = "SELECT current_setting('is_superuser');"

# One transaction, so that all of it is of one moment. Each line: relation, key, content.
ROWS = rf"""
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT format(
  'COPY (SELECT %L, %s, row_to_json(t.*)::text FROM ONLY %I.%I t) TO STDOUT',
  quote_ident(n.nspname) || '.' || quote_ident(c.relname),
  coalesce((SELECT CASE count(*) WHEN 0 THEN NULL WHEN 1 THEN format('to_json(%s)::text', min(x.n))
      ELSE format('json_build_array(%s)::text', string_agg(x.n, ', ' ORDER BY x.place)) END
    FROM (SELECT format('t.%I', a.attname) AS n, k.place
      FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(number, place), pg_attribute a
      WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid
        AND a.attnum = k.number) x),
    'NULL'),
  n.nspname, c.relname)
FROM {_RELATIONS} AND c.relkind = 'r' ORDER BY n.nspname, c.relname
\gexec
SELECT format(
  'COPY (SELECT %L, %L, last_value || '' '' || is_called FROM %I.%I) TO STDOUT',
  'sequence', quote_ident(n.nspname) || '.' || quote_ident(c.relname), n.nspname, c.relname)
FROM {_RELATIONS} AND c.relkind = 'S' ORDER BY n.nspname, c.relname
\gexec
SELECT $q$COPY (SELECT 'large object', m.oid::text,
    pg_get_userbyid(m.lomowner) || ' ' || coalesce(m.lomacl::text, '-') || ' ' || encode(sha256(
      coalesce(string_agg(l.data, ''::bytea ORDER BY l.pageno), '')), 'hex')
  FROM pg_largeobject_metadata m LEFT JOIN pg_largeobject l ON l.loid = m.oid
  GROUP BY m.oid, m.lomowner, m.lomacl) TO STDOUT$q$
WHERE current_setting('is_superuser') = 'on'
\gexec
COMMIT;
"""

# Locks are waited for, briefly, so that a writer in the middle of a transaction is not cut off and
# a deadlock cannot last; triggers and foreign keys sleep while rows are put back. The transaction
# ends with the rows that follow, which `pg_restore --single-transaction` closes with COMMIT.
EMPTIED = rf"""
BEGIN;
SET lock_timeout = '2s';
SET session_replication_role = replica;
SELECT format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE',
              string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', '
                         ORDER BY n.nspname, c.relname))
FROM {_RELATIONS} AND c.relkind = 'r' HAVING count(*) > 0
\gexec
SET lock_timeout = 0;
SELECT format('TRUNCATE TABLE %s',
              string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', '))
FROM {_RELATIONS} AND c.relkind = 'r' HAVING count(*) > 0
\gexec
SELECT format('SELECT lo_unlink(%s)', oid) FROM pg_largeobject_metadata
\gexec
"""

REFRESHED = rf"""
BEGIN;
SELECT format('REFRESH MATERIALIZED VIEW %I.%I', n.nspname, c.relname)
FROM {_RELATIONS} AND c.relkind = 'm' AND c.relispopulated ORDER BY c.oid
\gexec
COMMIT;
"""

END_TRANSACTIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL;
"""

ROLES = """
COPY (SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1) TO STDOUT;
"""


def identifier(name: str) -> str:
    """A name, quoted."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string, quoted, whatever `standard_conforming_strings` says."""
    quoted = text.replace("'", "''").replace("\\", "\\\\")
    return f" E'{quoted}'" if "\\" in text else f"'{quoted}'"


def swap(name: str, new: str, old: str | None, properties: list[str]) -> str:
    """Put the database `new` in the place of `name`, whose connections end."""
    lines: list[str] = []
    if old is not None:
        lines += [
            f"ALTER DATABASE {identifier(name)} WITH ALLOW_CONNECTIONS false;",
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            f"WHERE datname = {literal(name)};",
            f"ALTER DATABASE {identifier(name)} RENAME TO {identifier(old)};",
        ]
    lines.append(f"ALTER DATABASE {identifier(new)} RENAME TO {identifier(name)};")
    lines += properties
    if old is not None:
        lines.append(f"DROP DATABASE {identifier(old)};")
    return "\n".join(lines)
