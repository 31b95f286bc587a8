# The server, in the foreground, with the template that each task's database is a copy of.
set -e
mkdir -p /run/postgresql && chown postgres /run/postgresql
as="setpriv --reuid=postgres --regid=postgres --init-groups"
(
  until $as psql -X -q -d postgres -c 'SELECT 1' >/dev/null 2>&1; do sleep 0.1; done
  $as psql -X -q -v ON_ERROR_STOP=1 -d postgres -c 'CREATE DATABASE office_template'
  $as psql -X -q -v ON_ERROR_STOP=1 -d office_template -f template.sql
  touch /tmp/postgres-is-there
) &
exec $as /usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/main \
  -c config_file=/etc/postgresql/15/main/postgresql.conf
