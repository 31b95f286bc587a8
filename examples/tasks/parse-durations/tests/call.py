"""Call the candidate in a process of its own: a JSON list of texts in, results out."""

import json
import runpy
import sys

seconds = runpy.run_path("durations.py")["seconds"]
results: list[object] = []
for text in json.load(sys.stdin):
    try:
        results.append(seconds(text))
    except ValueError:
        results.append(None)
json.dump(results, sys.stdout)
