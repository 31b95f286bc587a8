#!/bin/bash
set -e
cd "$RAMIFY_ROOT/srv/office"
exec python3 - <<'END'
from itertools import product

from client import call

people = [f"{name}@north.example" for name in ("dana", "fay", "bo", "chi")]
[request] = [m for m in call("mail", "GET", "/messages?q=churn+quarter&folder=inbox")["items"]
             if m["subject"] == "Q1 churn review"]
rooms = call("calendar", "GET", "/rooms")["items"]
fitting = [room["name"] for room in rooms if room["seats"] >= len(people)]
# Not on Monday (Chi, in the thread), not on Wednesday (Fay).
for day, hour, minute in product((10, 12, 13), range(9, 17), (0, 15, 30, 45)):
    end_hour, end_minute = divmod(hour * 60 + minute + 45, 60)
    start = f"2026-03-{day:02d}T{hour:02d}:{minute:02d}:00Z"
    end = f"2026-03-{day:02d}T{end_hour:02d}:{end_minute:02d}:00Z"
    query = "&".join(f"attendee={person}" for person in people)
    query += "".join(f"&room={room}" for room in fitting)
    busy = call("calendar", "GET", f"/freebusy?start={start}&end={end}&{query}")["busy"]
    free = [room for room in fitting if not busy[room]]
    if end <= f"2026-03-{day:02d}T17:00:00Z" and free and not any(busy[p] for p in people):
        break
event = {"title": "Q1 churn review", "start": start, "end": end, "attendees": people}
call("calendar", "POST", "/events", event | {"room": free[0]})
answer = {"body": f"It is on {start} in {free[0]}.\nDana", "all": True}
call("mail", "POST", f"/messages/{request['id']}/reply", answer)
END
