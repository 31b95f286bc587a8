#!/bin/sh
# PostgreSQL on loopback with the database `office`, made where it is missing, for the user `office`
# with the password in OFFICE_PASSWORD. The server runs as `postgres`. TERM stops it at once.
set -eu
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
place=/data/postgres
as_owner() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
if [ ! -d "$place" ]; then
    mkdir -p /data
    chmod 711 /data
    rm -rf "$place.new" /tmp/office-password
    install -d -o postgres -g postgres -m 700 "$place.new"
    install -o postgres -m 600 /dev/null /tmp/office-password
    echo "$OFFICE_PASSWORD" > /tmp/office-password
    as_owner "$bin/initdb" -D "$place.new" -U office -A password --pwfile /tmp/office-password \
        -E UTF8 --locale C --no-sync > /dev/null
    rm /tmp/office-password
    echo "CREATE DATABASE office" | as_owner "$bin/postgres" --single -D "$place.new" postgres
    mv "$place.new" "$place"
fi
rm -f "$place/postmaster.pid"  # of a server that is not there any more: nobody else starts one here
cd /
as_owner "$bin/postgres" -D "$place" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c dynamic_shared_memory_type=mmap -c shared_buffers=16MB -c max_connections=30 &
server=$!
trap 'kill -INT "$server"' TERM INT
code=0
wait "$server" || code=$?
while kill -0 "$server" 2> /dev/null; do
    code=0
    wait "$server" || code=$?
done
exit "$code"
