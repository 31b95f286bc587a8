#!/bin/sh
# RAMIFY_ROOT is empty unless the sandbox has no root of its own.
logs="$RAMIFY_ROOT/logs/verifier"
mkdir -p "$logs"
reward=0
if [ -f answer.txt ] && [ ! -L answer.txt ]; then
    answer=$(head -c 100 answer.txt | tr -d '[:space:]')
    if [ "$answer" = "req-2af759e8" ]; then
        reward=1
    else
        echo "answer.txt names another request"
    fi
else
    echo "no answer.txt"
fi
echo "$reward" > "$logs/reward.txt"
