#!/bin/sh
# RAMIFY_ROOT is empty unless the sandbox has no root of its own.
logs="$RAMIFY_ROOT/logs/verifier"
mkdir -p "$logs"
reward=0
if [ -f answer.txt ] && [ ! -L answer.txt ]; then
    answer=$(head -c 200 answer.txt)
    [ "$answer" = "mail reports 8104" ] && reward=1
fi
[ "$reward" = 1 ] || echo "answer.txt is missing or does not name the conflict"
echo "$reward" > "$logs/reward.txt"
