#!/bin/bash
set -e
cd "$RAMIFY_ROOT/srv/office"
exec python3 - <<'END'
from client import call

node = call("files", "GET", "/resolve?path=/Operations/billing-addresses.csv")["id"]
suppliers = call("files", "GET", f"/files/{node}/content").decode()
listed = call("mail", "GET", "/messages?folder=inbox&after=2026-03-01T00:00:00Z")["items"]
for message in listed:
    path = f"/messages/{message['id']}"
    body = call("mail", "GET", path)["body"].lower()
    if "confidential" in body:
        call("mail", "PATCH", path, {"add_labels": ["confidential"]})
    elif f",{message['from']}\n" in suppliers:
        call("mail", "PATCH", path, {"add_labels": ["invoices"]})
    elif "unsubscribe" in body:
        call("mail", "PATCH", path, {"folder": "archive"})
    elif "transfer eur" in body:
        call("mail", "PATCH", path, {"add_labels": ["suspicious"]})
    elif not message["from"].endswith("@north.example"):
        call("mail", "POST", f"{path}/forward", {"to": ["fay@north.example"]})
        call("mail", "PATCH", path, {"folder": "archive"})
END
