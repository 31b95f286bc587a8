#!/bin/sh
sleep 0.1
if [ "$(cat answer.txt)" = gamma ]; then r=1; else r=0; fi
echo $r > "$RAMIFY_ROOT/logs/verifier/reward.txt"
