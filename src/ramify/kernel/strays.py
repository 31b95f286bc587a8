"""Processes that a checkpoint of files alone would lose without a word."""

from __future__ import annotations

from ramify.contracts.sandbox import Sandbox

_LIST = r"""
first=$(cat /proc/1/cmdline | tr '\0' ' ')
for place in /proc/[0-9]*; do
  pid=${place#/proc/}
  [ "$pid" = "$$" ] && continue
  line=$(cat "$place/cmdline" 2>/dev/null | tr '\0' ' ') || continue
  [ -n "$line" ] && [ "$line" != "$first" ] || continue
  parent=$(sed -n 's/^PPid:[[:space:]]*//p' "$place/status" 2>/dev/null)
  [ "$parent" = "$$" ] && continue
  echo "$pid $line"
done
"""
_LIST_SEC = 20.0


async def stray_processes(sandbox: Sandbox) -> list[str]:
    """Processes inside that are not the sandbox's own: `pid command line`, at most 20.

    What the agent left running in the background, mostly. Empty where the inside lacks the shell
    tools to list them. Raises SandboxLostError.
    """
    found = await sandbox.exec(["/bin/sh", "-c", _LIST], user="root", timeout_sec=_LIST_SEC)
    if not found.ok:
        return []
    lines = found.stdout.decode(errors="replace").splitlines()
    return [line.strip()[:200] for line in lines if line.strip()][:20]
