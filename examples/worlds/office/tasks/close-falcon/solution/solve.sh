#!/bin/bash
set -e
cd "$RAMIFY_ROOT/srv/office"
exec python3 - <<'END'
from client import call

for message in call("mail", "GET", "/messages?label=falcon")["items"]:
    thread = call("mail", "GET", f"/threads/{message['thread']}")["items"]
    if not any(m["from"] == "eli@north.example" and "Legal hold" in m["body"] for m in thread):
        call("mail", "PATCH", f"/messages/{message['id']}", {"folder": "trash"})
tmp = call("files", "GET", "/resolve?path=/Operations/Falcon/tmp")["id"]
call("files", "DELETE", f"/nodes/{tmp}?recursive=true")
[channel] = [c for c in call("chat", "GET", "/channels")["items"] if c["name"] == "falcon"]
call("chat", "POST", f"/channels/{channel['id']}/messages", {"text": "Project Falcon is closed."})
call("chat", "PATCH", f"/channels/{channel['id']}", {"archived": True})
END
