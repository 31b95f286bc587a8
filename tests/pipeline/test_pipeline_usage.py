"""What steps used is what the kernel counted, or nothing; what they may use has a bound."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from pipeline_stand import make_repository, pipeline, provider_of, verify

from ramify.apps.pipeline.memory import machine_memory, with_memory
from ramify.apps.pipeline.records import PipelineSpec, StepSpec
from ramify.contracts.sandbox import MIB, Limits
from ramify.planes.sandbox.usage import read_usage

PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]
HOLDS_64 = "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null"


@pytest.mark.parametrize("name", PROVIDERS)
async def test_memory_and_cpu_of_all_processes_of_a_step(name: str, tmp_path: Path) -> None:
    steps = (
        StepSpec("small", "true"),
        StepSpec("big", f"( {HOLDS_64} )"),
        StepSpec(
            "orphan",
            f"( ( {HOLDS_64}; touch $TMPDIR/held; sleep 60 ) & )\n"
            "while [ ! -e $TMPDIR/held ]; do sleep 0.05; done",
        ),
        StepSpec("busy", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"),
        StepSpec("left", f"{HOLDS_64}; sleep 60 &", background=True),
        StepSpec("late", f"{HOLDS_64}; sleep 60", timeout_sec=3.0),
        StepSpec("never", "true"),
    )
    async with provider_of(name) as provider:
        response = await verify(
            provider, make_repository(tmp_path), PipelineSpec(steps, grace_sec=0.3)
        )
    by_name = {step.name: step for step in response.manifest.steps}
    for each in ("big", "orphan", "left", "late"):
        step = by_name[each]
        assert step.peak_rss is not None, each
        assert 64 * MIB <= step.peak_rss < 96 * MIB, each
        assert step.not_measured is None, each
    small, busy, never = by_name["small"], by_name["busy"], by_name["never"]
    assert small.peak_rss is None
    assert "which starting one takes" in (small.not_measured or "")
    assert small.cpu_ms is not None
    assert busy.cpu_ms is not None
    assert busy.cpu_ms >= small.cpu_ms + 10
    assert (never.peak_rss, never.cpu_ms, never.not_measured) == (None, None, None)


@pytest.mark.parametrize("name", PROVIDERS)
async def test_who_kills_what_counts_is_not_counted(name: str, tmp_path: Path) -> None:
    spec = PipelineSpec((StepSpec("kill", "kill -9 $PPID; sleep 5"),), grace_sec=0.3)
    async with provider_of(name) as provider:
        response = await verify(provider, make_repository(tmp_path), spec)
    (step,) = response.manifest.steps
    assert step.status == "failed"
    assert (step.peak_rss, step.cpu_ms) == (None, None)
    assert "was killed" in (step.not_measured or "")


@pytest.mark.parametrize("name", PROVIDERS)
async def test_memory_is_bounded_where_the_pipeline_does_not_say(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    async with provider_of(name) as provider:
        await provider.probe()
        can = provider.capabilities()
        free = await verify(provider, repo, pipeline("true"))
        bound = await verify(provider, repo, pipeline("true", limits=Limits(memory_mb=512)))
    if "memory_mb" not in can.limits:
        pytest.skip("memory cannot be limited here")
    assert free.manifest.limits.memory_mb == int(machine_memory() * 0.8) // MIB
    assert bound.manifest.limits.memory_mb == 512
    assert free.manifest.pipeline_sha256 != bound.manifest.pipeline_sha256
    unable = msgspec.structs.replace(can, limits=frozenset[str]())
    assert with_memory(Limits(), unable) == Limits()


def test_memory_of_a_machine_is_with_swap_and_within_its_own_bound(tmp_path: Path) -> None:
    meminfo, v1, v2 = tmp_path / "meminfo", tmp_path / "v1", tmp_path / "v2"
    assert machine_memory(meminfo, (v1, v2)) == 0
    meminfo.write_text("MemTotal:     1024 kB\nMemFree:   7 kB\nSwapTotal:     512 kB\n")
    assert machine_memory(meminfo, (v1, v2)) == 1536 * 1024
    v1.write_text("9223372036854771712\n")
    v2.write_text("max\n")
    assert machine_memory(meminfo, (v1, v2)) == 1536 * 1024
    v1.write_text("524288\n")
    assert machine_memory(meminfo, (v1, v2)) == 524288


@pytest.mark.parametrize("told", ["", "1 2", "1 2 3 4", "-1 2 3", "1e9 2 3", None, 7, "9" * 40])
def test_nonsense_is_no_usage(told: object) -> None:
    assert read_usage(told) is None


def test_a_peak_that_starting_takes_is_none() -> None:
    below, above = read_usage("5 100 100"), read_usage("5 101 100")
    assert below is not None
    assert above is not None
    assert (below.cpu_ms, below.peak_rss, below.least_rss) == (5, None, 100)
    assert above.peak_rss == 101
