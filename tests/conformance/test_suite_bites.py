"""The suite catches a sandbox that claims what it does not have, check by check.

Left out are only the checks that would harm the machine if a sandbox let them through (a
`kill -9 -1`, writes to /etc, a fork bomb, giant files) and what a naive sandbox may get right.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
from pathlib import Path
from types import ModuleType

import pytest
from naive import NaiveProvider

from ramify.contracts.sandbox import SandboxSpec
from ramify.testing import (
    conformance_agent,
    conformance_checkpoint,
    conformance_reward,
    conformance_sandbox_download,
    conformance_sandbox_exec,
    conformance_sandbox_isolation,
    conformance_sandbox_kill,
    conformance_sandbox_life,
    conformance_sandbox_mounts,
    conformance_sandbox_network,
    conformance_sandbox_reconnect,
    conformance_sandbox_spawn,
    conformance_sandbox_upload,
)
from ramify.testing.check import Check, CheckSkipped, ConformanceError, check
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench

CHECKS = {check.name: check for check in SANDBOX_CHECKS}
CAUGHT = [
    "exec.missing_program_is_127",
    "exec.not_executable_is_126",
    "exec.signals_are_128_plus_n",
    "exec.cwd_and_workdir",
    "exec.missing_cwd_is_126",
    "exec.default_user_of_the_spec",
    "exec.unknown_user_is_126",
    "exec.output_limit_keeps_head_and_tail",
    "exec.flood_costs_bounded_memory",
    "exec.duration_is_measured",
    "exec.cancelled_call_kills",
    "kill.timeout_kills_term_ignored",
    "kill.timeout_kills_setsid_holds_stdout",
    "kill.timeout_kills_double_fork",
    "kill.timeout_kills_stopped_tree",
    "kill.timeout_kills_forks_while_killed",
    "kill.kill_leftovers_kills_double_fork_exits_0",
    "kill.timeout_keeps_output",
    "spawn.write_after_close_is_broken_pipe",
    "spawn.what_cannot_start_is_refused",
    "spawn.user",
    "spawn.teardown_ends_wait",
    "spawn.pty_is_a_terminal",
    "spawn.pty_resize",
    "upload.file_content_and_mode",
    "upload.parents_are_made",
    "upload.clear_removes_a_link_itself",
    "upload.mode_is_set_on_files",
    "upload.owner",
    "upload.planted_link_is_replaced",
    "upload.planted_fifo_is_replaced",
    "upload.planted_parents_do_not_reach_the_host",
    "upload.local_links_are_copied_as_links",
    "upload.file_below_a_file_is_refused",
    "download.file",
    "download.neither_file_nor_directory",
    "download.links_inside_are_kept",
    "download.fifo_does_not_block",
    "download.total_bytes_are_limited",
    "download.entries_are_limited",
    "download.depth_is_limited",
    "download.set_id_bits_are_cleared",
    "network.none_reaches_no_loopback_of_the_host",
    "network.none_reaches_no_address_of_the_host",
    "network.none_has_no_other_interface",
    "network.same_port_in_two_sandboxes",
    "mounts.ro_is_read_only",
    "mounts.rw_reaches_the_source",
    "mounts.cow_writes_freely",
    "mounts.cow_keeps_changes_in_upper",
    "mounts.cow_side_by_side",
    "mounts.owners_are_usable",
    "mounts.laid_in_order",
    "mounts.bad_mounts_are_refused",
    "mounts.no_image_with_mounts",
    "mounts.user_without_an_entry",
    "isolation.host_files_are_invisible",
    "isolation.engine_environment_is_invisible",
    "isolation.sandboxes_do_not_see_each_other",
    "isolation.demands_beyond_capabilities_are_refused",
    "life.prepare_is_cached",
    "life.frozen_content",
    "life.frozen_sandbox_is_spent",
    "life.use_after_teardown",
    "life.unknown_image_is_refused",
]


TAKES_ROOT = {"exec.default_user_of_the_spec", "spawn.user", "upload.owner"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[as_root] if n in TAKES_ROOT else []) for n in CAUGHT]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_naive_sandbox_is_caught(name: str, tmp_path: Path) -> None:
    bench = SandboxBench(NaiveProvider(), SandboxSpec(host_root=True), tmp_path)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (whatever it is, it must not pass)
        await CHECKS[name].run(bench)
    assert not isinstance(caught.value, CheckSkipped)


MODULES = [
    conformance_agent,
    conformance_checkpoint,
    conformance_reward,
    conformance_sandbox_download,
    conformance_sandbox_exec,
    conformance_sandbox_isolation,
    conformance_sandbox_kill,
    conformance_sandbox_life,
    conformance_sandbox_mounts,
    conformance_sandbox_network,
    conformance_sandbox_reconnect,
    conformance_sandbox_spawn,
    conformance_sandbox_upload,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_check_is_in_its_table(module: ModuleType) -> None:
    made = [value for value in vars(module).values() if isinstance(value, Check)]
    (table,) = [v for k, v in vars(module).items() if k.endswith("_CHECKS")]
    assert set(made) <= set(table)
    assert len({check.name for check in table}) == len(table)
    for item in table:
        assert item.sentence.endswith("."), item.name


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_no_check_is_lost_under_optimisation(module: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(module))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


async def test_an_unmet_need_skips_and_a_slow_check_fails(tmp_path: Path) -> None:
    bench = SandboxBench(NaiveProvider(), SandboxSpec(host_root=True), tmp_path)

    @check("limits.memory_mb")
    async def unmet(bench: SandboxBench) -> None:
        """Never run."""
        raise RuntimeError

    with pytest.raises(CheckSkipped, match="does not offer limits.memory_mb"):
        await unmet.run(bench)

    @check(timeout_sec=0.01)
    async def slow(bench: SandboxBench) -> None:
        """Never ends."""
        await asyncio.sleep(5)

    with pytest.raises(ConformanceError, match="did not finish within 0.01 s"):
        await slow.run(bench)

    @check("limitz.memory")
    async def misspelt(bench: SandboxBench) -> None:
        """Needs what does not exist."""

    with pytest.raises(ValueError, match="unknown need"):
        await misspelt.run(bench)
