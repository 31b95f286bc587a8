#!/bin/sh
# Start the service in the background; returns when it listens.
mkdir -p run
rm -f run/port
python3 -I server.py < /dev/null > run/server.log 2>&1 &
echo $! > run/pid
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ -f run/port ] && exit 0
    sleep 0.25
done
echo "the service does not start; see run/server.log" >&2
exit 1
