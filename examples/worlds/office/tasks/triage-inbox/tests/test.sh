#!/bin/sh
# The grader belongs to the world and is hidden from agents; see `hidden_from_agent`.
cd "$RAMIFY_ROOT/tests" && exec python3 -m office_grader triage-inbox
