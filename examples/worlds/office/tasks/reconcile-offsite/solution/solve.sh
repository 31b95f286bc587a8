#!/bin/bash
set -e
cd "$RAMIFY_ROOT/srv/office"
exec python3 - <<'END'
from client import call

[channel] = [c for c in call("chat", "GET", "/channels")["items"] if c["name"] == "offsite"]
said = call("chat", "GET", f"/channels/{channel['id']}/messages")["items"]


def event(title: str) -> str:
    [found] = call("calendar", "GET", f"/events?q={title}")["items"]
    return f"/events/{found['id']}"


def done(words: str) -> None:
    [message] = [m for m in said if words in m["text"]]
    path = f"/channels/{channel['id']}/messages/{message['id']}/reactions/calendar"
    call("chat", "PUT", path)


times = {"start": "2026-03-26T19:30:00Z", "end": "2026-03-26T21:30:00Z"}
call("calendar", "PATCH", event("dinner"), times)
done("at 19:30")
call("calendar", "DELETE", event("photo"))
done("no photo session")
retro = {"title": "Offsite retro", "attendees": channel["members"]}
retro |= {"start": "2026-03-27T13:00:00Z", "end": "2026-03-27T14:00:00Z"}
call("calendar", "POST", "/events", retro)
done("Offsite retro")
END
