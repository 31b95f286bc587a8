#!/bin/sh
# Redis on loopback, with the password in OFFICE_PASSWORD; each write is on disk before its answer.
set -eu
umask 077
mkdir -p /data/redis
exec redis-server - <<END
bind 127.0.0.1
dir /data/redis
appendonly yes
appendfsync always
save ""
requirepass $OFFICE_PASSWORD
END
