#!/bin/sh
set -e
python3 -I - <<'END'
import csv
import json
from decimal import Decimal

found = {}
with open("orders.csv", encoding="utf-8", newline="") as file:
    for row in csv.DictReader(file):
        if row["status"] == "cancelled":
            continue
        date = row["date"]
        if "/" in date:
            date = "-".join(reversed(date.split("/")))
        entry = found.setdefault(row["customer"], {"orders": [], "total_cents": {}})
        entry["orders"].append((date, row["order_id"]))
        currency = row["currency"].upper()
        cents = int(Decimal(row["amount"].replace(",", "")) * 100)
        entry["total_cents"][currency] = entry["total_cents"].get(currency, 0) + cents
for entry in found.values():
    entry["orders"] = [order for _, order in sorted(entry["orders"])]
with open("customers.json", "w", encoding="utf-8") as file:
    json.dump(found, file, ensure_ascii=False, indent=1)
END
