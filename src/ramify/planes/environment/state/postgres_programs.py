"""Where a sandbox has the programs of PostgreSQL: lines of shell that come before their use.

Debian's /usr/bin/psql is a script that looks for a cluster and its port each time, which is half of
what a short statement costs. It is passed by where it has nothing to choose.
"""

from __future__ import annotations

_FOUND = (
    "PATH=$PATH:/usr/local/bin:/usr/bin:$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n1)"
)
PORT_KNOWN = f"""{_FOUND}
set -- /usr/lib/postgresql/*/bin
[ "$#" -gt 1 ] || [ ! -x "$1/psql" ] || PATH="$1:$PATH"
"""
"""The port is said: with one version, its programs."""

PORT_UNKNOWN = f"""{_FOUND}
set -- /usr/lib/postgresql/*/bin /var/run/postgresql/.s.PGSQL.*[0-9]
if [ "$#" = 2 ] && [ -x "$1/psql" ] && [ -S "$2" ] && [ -z "$PGHOST$PGPORT" ]; then
    PATH="$1:$PATH" PGPORT="${{2##*.}}"
    export PGPORT
fi
"""
"""Nothing is said: with one version and one server, its programs and its port."""
