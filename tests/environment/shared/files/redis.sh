# The server, in the foreground, with the keys that each task's are copies of.
export REDISCLI_AUTH=of-the-fleet
(
  until redis-cli ping 2>/dev/null | grep -q PONG; do sleep 0.1; done
  redis-cli set template:greeting hello && touch /tmp/redis-is-there
) &
exec redis-server --save '' --requirepass of-the-fleet --dir /tmp
