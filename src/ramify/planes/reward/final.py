"""The final state of a rollout, kept with its artifacts: what verification was shown.

```
<rollout>/final/
  manifest.json   what stands where
  0, 1, ...       a file or directory each
```
Only regular files, directories and links within the work directory; `ramify score` puts them into
a fresh sandbox again.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ramify.contracts.errors import TransferLimitError
from ramify.contracts.result import FINAL_STATE, FinalState, KeptPath
from ramify.contracts.sandbox import MIB, Sandbox, TransferLimits

_KEPT = TransferLimits(
    max_bytes=64 * MIB, max_file_bytes=32 * MIB, max_entries=10_000, links="inside"
)
"""What is kept where verification itself needs no copy of the work directory."""


async def keep_final(sandbox: Sandbox, artifacts: Path, workdir: str, paths: Sequence[str]) -> None:
    """Keep the work directory and `paths` of a sandbox that is verified in place.

    What exceeds the limits is left out, and the manifest says why; verification goes on.

    Raises: SandboxError.
    """
    folder = await new_final(artifacts)
    kept: list[KeptPath] = []
    for index, path in enumerate(paths):
        entry = KeptPath(path, str(index))
        try:
            await sandbox.download(path, folder / entry.place, limits=_KEPT)
        except FileNotFoundError:
            entry = KeptPath(path, "")
        except TransferLimitError as error:
            entry = KeptPath(path, "", str(error))
        kept.append(entry)
    await write_manifest(artifacts, workdir, kept)


async def new_final(artifacts: Path) -> Path:
    """An empty `final/` among the artifacts; what an earlier attempt kept is gone."""
    folder = artifacts / "final"
    await asyncio.to_thread(_empty, folder)
    return folder


async def write_manifest(artifacts: Path, workdir: str, kept: Sequence[KeptPath]) -> None:
    """Say what was kept. Written last: without it nothing counts as kept."""
    state = FinalState(workdir, tuple(kept))
    await asyncio.to_thread((artifacts / FINAL_STATE).write_bytes, msgspec.json.encode(state))


def _empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
