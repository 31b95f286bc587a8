"""A scripted policy that solves example tasks by reading their files and quoting what it read."""

from __future__ import annotations

import configparser
import csv
import io
import json
import re
from collections import Counter
from decimal import Decimal

from ramify.testing.scripted_model import Script, Seen, call


def _port_conflict(seen: Seen):
    defaults, *services = seen.quote(r"(?s)(.*)").split("=====\n")
    by_port: dict[str, list[str]] = {}
    for text in services:
        config = configparser.ConfigParser()
        config.read_string(defaults)
        config.read_string(text)
        section = config["service"]
        by_port.setdefault(section["port"], []).append(section["name"])
    [(port, names)] = [item for item in by_port.items() if len(item[1]) > 1]
    return call("write", path="answer.txt", content=" ".join([*sorted(names), port]) + "\n")


def _orders(seen: Seen):
    found: dict[str, dict] = {}
    for row in csv.DictReader(io.StringIO(seen.answers[0])):
        if row["status"] == "cancelled":
            continue
        date = row["date"]
        if "/" in date:
            date = "-".join(reversed(date.split("/")))
        entry = found.setdefault(row["customer"], {"orders": [], "total_cents": Counter()})
        entry["orders"].append((date, row["order_id"]))
        cents = int(Decimal(row["amount"].replace(",", "")) * 100)
        entry["total_cents"][row["currency"].upper()] += cents
    for entry in found.values():
        entry["orders"] = [order for _, order in sorted(entry["orders"])]
    return call("write", path="customers.json", content=json.dumps(found, ensure_ascii=False))


def _chapters(seen: Seen):
    parts = re.split(r"^# (.*)$", seen.answers[0], flags=re.MULTILINE)[1:]
    calls, index = [], ""
    for number, (title, text) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1):
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        name = f"{number:02d}-{slug}.txt"
        calls.append(call("write", path=f"chapters/{name}", content=text.strip("\n") + "\n"))
        index += f"{name} {len(text.split())}\n"
    return [*calls, call("write", path="chapters/index.txt", content=index)]


def _stats(seen: Seen):
    assert seen.quote(r"values\.sort\(\)")
    middle = seen.quote(r"return (values\[len\(values\) // 2\])")
    return [
        call(
            "edit", path="stats.py", old="    values.sort()\n", new="    values = sorted(values)\n"
        ),
        call(
            "edit",
            path="stats.py",
            old=f"    return {middle}\n",
            new="    half = len(values) // 2\n    if len(values) % 2:\n"
            "        return values[half]\n    return (values[half - 1] + values[half]) / 2\n",
        ),
        call(
            "edit",
            path="stats.py",
            old=seen.quote(r"return (Counter.*)"),
            new="min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]",
        ),
        call(
            "edit",
            path="stats.py",
            old=seen.quote(r"return (ordered.*)"),
            new="ordered[-(-len(ordered) * p // 100) - 1]",
        ),
    ]


def _release(seen: Seen):
    old, new = seen.quote(r"release=(\S+)"), seen.quote(r"^(2\S+)$")
    return call(
        "bash",
        command=f"""cd "$RAMIFY_ROOT/opt/notes" && chmod +x releases/{new}/bin/notes &&
ln -s releases/{old} previous && ln -sfn releases/{new} current &&
sed -i s/^release={old}$/release={new}/ "$RAMIFY_ROOT/etc/notes.conf" """,
    )


COUNT = """awk '$(NF-1) >= 400 { n[$1]++ } END { for (ip in n) print n[ip], ip }' access.log"""

SCRIPTS: dict[str, Script] = {
    "end up on the same": [
        [call("read", path="README"), call("bash", command="ls conf.d")],
        call(
            "bash",
            command="cat defaults.ini; for f in conf.d/*.ini; do echo =====; cat $f; done",
        ),
        _port_conflict,
        "It is in answer.txt.",
    ],
    "`orders.csv`": [call("read", path="orders.csv"), _orders, "Done."],
    "`book.txt`": [call("read", path="book.txt"), _chapters, "Done."],
    "`stats.py`": [
        call("read", path="stats.py"),
        _stats,
        call("bash", command="python3 -I -c 'import sys; sys.path.insert(0, \".\"); import stats'"),
        "Repaired.",
    ],
    "`access.log`": [
        call("bash", command=f"{COUNT} | LC_ALL=C sort -k1,1nr -k2,2 | head -n 5"),
        lambda seen: call("write", path="top.txt", content=seen.answers[0]),
        "Done.",
    ],
    "`/opt/notes`": [
        call("bash", command='cat "$RAMIFY_ROOT"/etc/notes.conf; ls "$RAMIFY_ROOT"/opt/notes/rel*'),
        _release,
        "Done.",
    ],
}
"""A text of the instruction → what the policy does."""

SOLVED = (
    "port-conflict", "orders-to-json", "split-chapters", "fix-stats", "top-clients",
    "switch-release",
)  # fmt: skip
