"""`ramify tree`: a rollout's tree, or the rollouts of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.text import Text
from rich.tree import Tree as View

from ramify.cli.options import job_argument
from ramify.cli.present import console, results_table, reward_text, seconds_text
from ramify.contracts.errors import UnknownNameError
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Step
from ramify.engine.reading import read_events, read_results
from ramify.kernel.tree import Tree, tree_from_events


@click.command("tree")
@job_argument
@click.argument("rollout", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(job: Path, rollout: str | None, as_json: bool) -> None:
    """Print the tree of one ROLLOUT of RUN; without one, list the rollouts."""
    results = read_results(job)
    if rollout is None:
        _list(results, as_json)
        return
    if rollout not in results:
        raise UnknownNameError("rollout", rollout, results)
    tree = tree_from_events(read_events(job, rollout))
    if as_json:
        for node in range(len(tree)):
            click.echo(msgspec.json.encode(_record(tree, node)).decode())
        return
    console().print(_view(tree, results[rollout]))


def _list(results: dict[str, RolloutResult], as_json: bool) -> None:
    ordered = sorted(results.values(), key=lambda r: (r.task_id, r.repeat))
    if as_json:
        for result in ordered:
            click.echo(msgspec.json.encode(result).decode())
        return
    out = console()
    out.print(results_table(ordered, out.width))
    out.print()
    for result in ordered:
        out.print(f"{result.rollout_id}  {result.steps} steps", soft_wrap=True)


def _record(tree: Tree, node: int) -> dict[str, Any]:
    return {
        "node": node,
        "parent": tree.parent(node),
        "depth": tree.depth(node),
        "status": tree.status(node).value,
        "rewards": tree.rewards(node),
        "step": tree.step(node),
    }


def _view(tree: Tree, result: RolloutResult) -> View:
    prompt = " ".join(message.content for message in tree.opening).strip().splitlines() or [""]
    label = Text(f"{result.rollout_id}  {result.outcome.value}  ")
    label.append(f"reward {reward_text(result.reward)}", style="bold")
    label.append(f"\n{_cut(prompt[0], 100)}", style="dim")
    root = View(label)
    views = {0: root}
    for node in range(1, len(tree)):
        views[node] = views[tree.parent(node) or 0].add(_label(tree, node))
    return root


def _label(tree: Tree, node: int) -> Text:
    step = tree.step(node) or Step()
    label = Text(f"{node} ")
    label.append(_cut(step.action or "step", 90), style="bold")
    label.append(f"  {seconds_text(step.duration_sec)}", style="dim")
    if step.branch_reason:
        label.append(f"  [{step.branch_reason}]", style="cyan")
    if (code := step.info.get("exit_code")) not in (None, 0):
        label.append(f"  exit {code}", style="red")
    if not tree.children(node):
        label.append(f"  {tree.status(node).value}", style="green")
    for event in tree.rewards(node):
        label.append(f"  {event.name} {reward_text(event.value)}", style="magenta")
    return label


def _cut(text: str, width: int) -> str:
    line = text.replace("\n", " ⏎ ")
    return line if len(line) <= width else line[: width - 1] + "…"
