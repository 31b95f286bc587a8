#!/bin/sh
set -e
mkdir -p chapters
python3 -I - <<'END'
import re
from pathlib import Path

parts = re.split(r"^# (.*)$", Path("book.txt").read_text(), flags=re.MULTILINE)[1:]
index = ""
for number, (title, text) in enumerate(zip(parts[::2], parts[1::2]), 1):
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    name = f"{number:02d}-{slug}.txt"
    Path("chapters", name).write_text(text.strip("\n") + "\n")
    index += f"{name} {len(text.split())}\n"
Path("chapters/index.txt").write_text(index)
END
