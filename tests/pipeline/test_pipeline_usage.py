"""What steps used is what the kernel counted, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_stand import make_repository, provider_of, verify

from ramify.apps.pipeline.records import PipelineSpec, StepSpec
from ramify.planes.sandbox.usage import read_usage

PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]
MIB = 1024 * 1024
HOLDS_64 = "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null"


@pytest.mark.parametrize("name", PROVIDERS)
async def test_memory_and_cpu_of_all_processes_of_a_step(name: str, tmp_path: Path) -> None:
    steps = (
        StepSpec("small", "true"),
        StepSpec("big", f"( {HOLDS_64} )"),
        StepSpec("orphan", f"( ( {HOLDS_64}; sleep 60 ) & ) ; sleep 1"),
        StepSpec("busy", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"),
        StepSpec("left", f"{HOLDS_64}; sleep 60 &", background=True),
        StepSpec("late", f"{HOLDS_64}; sleep 60", timeout_sec=1.0),
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


@pytest.mark.parametrize("told", ["", "1 2", "1 2 3 4", "-1 2 3", "1e9 2 3", None, 7, "9" * 40])
def test_nonsense_is_no_usage(told: object) -> None:
    assert read_usage(told) is None


def test_a_peak_that_starting_takes_is_none() -> None:
    below, above = read_usage("5 100 100"), read_usage("5 101 100")
    assert below is not None
    assert above is not None
    assert (below.cpu_ms, below.peak_rss, below.least_rss) == (5, None, 100)
    assert above.peak_rss == 101
