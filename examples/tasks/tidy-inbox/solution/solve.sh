#!/bin/sh
set -e
python3 -I - <<'END'
from pathlib import Path

inbox = Path("inbox")
seen = set()
for path in sorted((p for p in inbox.rglob("*") if p.is_file()), key=lambda p: p.as_posix().encode()):
    content = path.read_bytes()
    if not content or content in seen:
        path.unlink()
        continue
    seen.add(content)
    path.rename(inbox / path.name.lower())
for folder in sorted((p for p in inbox.rglob("*") if p.is_dir()), reverse=True):
    folder.rmdir()
END
