#!/bin/sh
set -e
python3 -I - <<'END'
import configparser
from pathlib import Path

by_port = {}
for path in sorted(Path("conf.d").glob("*.ini")):
    config = configparser.ConfigParser()
    config.read(["defaults.ini", path])
    by_port.setdefault(config["service"]["port"], []).append(config["service"]["name"])
[(port, names)] = [item for item in by_port.items() if len(item[1]) > 1]
Path("answer.txt").write_text(" ".join([*sorted(names), port]) + "\n")
END
