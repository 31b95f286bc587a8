#!/bin/sh
# RAMIFY_ROOT is empty unless the sandbox has no root of its own.
logs="$RAMIFY_ROOT/logs/verifier"
mkdir -p "$logs"
if [ -f top.txt ] && [ ! -L top.txt ] && cmp -s top.txt "$RAMIFY_ROOT/tests/expected.txt"; then
    echo 1 > "$logs/reward.txt"
else
    echo "top.txt is not the expected report"
    echo 0 > "$logs/reward.txt"
fi
