"""Tasks are read in threads, several at once: no type may be half made there."""

from __future__ import annotations

import subprocess
import sys

TOGETHER = """
import sys, threading
import msgspec
from ramify.contracts.tables import table_record

sys.setswitchinterval(1e-6)
FIELDS = [(f"f{n}", "list[int] | None", None) for n in range(40)]
for _ in range(40):
    inner = msgspec.defstruct("Inner", FIELDS)
    outer = msgspec.defstruct("Outer", [("inner", inner), *FIELDS])
    together = threading.Barrier(4)
    read = []

    def work():
        together.wait()
        read.append(table_record(outer, {"inner": {"f1": [1]}}, "task.toml").inner.f1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [[1]] * 4, read
"""


def test_a_kind_of_table_may_be_met_by_several_threads_at_once() -> None:
    """In a process of its own: what goes wrong here is a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
