"""`ramify tree`: a rollout's tree with what each state is worth, or what two states differ in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as View

from ramify.cli.options import job_argument
from ramify.cli.present import (
    SHOWN_ROWS,
    console,
    first_rows,
    results_table,
    reward_text,
    seconds_text,
)
from ramify.contracts.environment import WorldState
from ramify.contracts.errors import ConfigError, UnknownNameError, UsageError
from ramify.contracts.events import AnyEvent, WorldEvent
from ramify.contracts.result import RolloutResult
from ramify.contracts.tree import Fidelity, NodeStatus, Step
from ramify.engine.reading import read_events, read_results
from ramify.kernel.outline import leaf_returns
from ramify.kernel.tree import Tree, tree_from_events
from ramify.kernel.value import Estimator, Value, Values, tree_values
from ramify.kernel.worlds import Change, changes

_decoder = msgspec.json.Decoder(WorldState)

_SHOWN_CHANGES = 200
_DIGEST = re.compile(r"\b([a-z0-9]+:[0-9a-f]{12})[0-9a-f]{52}\b")


@click.command("tree")
@job_argument
@click.argument("rollout", required=False)
@click.option("--diff", "pair", nargs=2, type=click.IntRange(0), metavar="A B",
              help="What two nodes' worlds differ in: rows, files, services.")  # fmt: skip
@click.option("--estimator", type=click.Choice([each.value for each in Estimator]),
              default=Estimator.CHILD_MEAN.value, show_default=True,
              help="How the values of children become one.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), default=SHOWN_ROWS, show_default=True, metavar="N",
              help="List so many rollouts at most.")  # fmt: skip
@click.option("--all", "list_all", is_flag=True, help="List all rollouts, however many.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output, always of all.")
def command(
    job: Path,
    rollout: str | None,
    pair: tuple[int, int] | None,
    estimator: str,
    limit: int,
    list_all: bool,
    as_json: bool,
) -> None:
    """Print the tree of one ROLLOUT of RUN with V ± SE; without one, list the rollouts."""
    results = read_results(job)
    if rollout is None:
        if pair is not None:
            raise UsageError("--diff compares two nodes of one rollout; name the ROLLOUT")
        _list(results, None if list_all else limit, as_json)
        return
    if rollout not in results:
        raise UnknownNameError("rollout", rollout, results)
    events = list(read_events(job, rollout))
    tree = tree_from_events(events)
    if pair is not None:
        found = list(_differences(job / "rollouts" / rollout, events, tree, pair))
        _print_changes(found, pair, as_json)
        return
    values = tree_values(tree, leaf_returns(tree), estimator=Estimator(estimator))
    if as_json:
        for node in range(len(tree)):
            click.echo(msgspec.json.encode(_record(tree, node, values.at(node))).decode())
        return
    console().print(_view(tree, results[rollout], values))


def _list(results: dict[str, RolloutResult], limit: int | None, as_json: bool) -> None:
    ordered, left_out = first_rows(results.values(), None if as_json else limit)
    if as_json:
        for result in ordered:
            click.echo(msgspec.json.encode(result).decode())
        return
    out = console()
    out.print(results_table(ordered, out.width))
    out.print()
    for result in ordered:
        leaves = f", {result.leaves} leaves" if result.leaves > 1 else ""
        steps = "1 step" if result.steps == 1 else f"{result.steps} steps"
        out.print(f"{result.rollout_id}  {steps}{leaves}", soft_wrap=True)
    if left_out:
        out.print(f"... and {left_out} more; --all or --limit {len(results)} lists them")


def _record(tree: Tree, node: int, value: Value) -> dict[str, Any]:
    return {
        "node": node,
        "parent": tree.parent(node),
        "depth": tree.depth(node),
        "status": tree.status(node).value,
        "state": tree.state(node),
        "rewards": tree.rewards(node),
        "value": value,
        "step": tree.step(node),
    }


def _view(tree: Tree, result: RolloutResult, values: Values) -> View:
    """Steps that follow each other stand below each other; what branches is indented."""
    # What the agent was asked, not the instructions that its harness puts before it.
    asked = [message.content for message in tree.opening if message.role == "user"]
    prompt = " ".join(asked).strip().splitlines() or [""]
    label = Text(f"{result.rollout_id}  {result.outcome.value}  ")
    label.append(f"reward {reward_text(result.reward)}", style="bold")
    if prompt[0]:
        label.append(f"\n{_cut(prompt[0], 100)}", style="dim")
    top = View(label)
    rows = {0: top if len(tree.children(0)) == 1 else top.add(_label(tree, 0, values))}
    lists = {0: top}
    for node in range(1, len(tree)):
        parent = tree.parent(node) or 0
        alone = len(tree.children(parent)) == 1
        rows[node] = (lists if alone else rows)[parent].add(_label(tree, node, values))
        lists[node] = lists[parent] if alone else rows[node]
    return top


def _label(tree: Tree, node: int, values: Values) -> Text:
    step = tree.step(node) or Step(action="start")
    label = Text(f"{node} ")
    label.append(_cut(step.action or "step", 90), style="bold")
    if step.role == "branch":
        _append_branch(label, step)
    elif node:
        label.append(f"  {seconds_text(step.duration_sec)}", style="dim")
    if (code := step.info.get("exit_code")) not in (None, 0):
        label.append(f"  exit {code}", style="red")
    children = len(tree.children(node))
    if children > 1 or (node == 0 and children):
        label.append(f"  {_value(values.at(node))}", style="bold magenta")
    if not children:
        status = tree.status(node)
        style = "green" if status is NodeStatus.SCORED else "yellow"
        label.append(f"  {status.value}", style=style)
    for event in tree.rewards(node):
        label.append(f"  {event.name} {reward_text(event.value)}", style="magenta")
    return label


def _append_branch(label: Text, step: Step) -> None:
    if step.branch_reason:
        label.append(f"  [{step.branch_reason}]", style="cyan")
    fidelity = str(step.info.get("fidelity", ""))
    if fidelity:
        whole = fidelity == Fidelity.LIVE.value
        label.append(f"  {fidelity}", style="dim" if whole else "yellow")
    services: dict[str, str] = step.info.get("services", {})
    if lesser := [f"{name} {way}" for name, way in services.items() if way != "live"]:
        label.append(f"  ({', '.join(lesser)})", style="dim")
    if step.prior is not None:
        label.append(f"  prior {step.prior:g}", style="cyan")


def _value(value: Value) -> str:
    """`V 0.667 ± 0.333 (3 leaves)`, with what has to be known of it."""
    if value.value is None:
        return f"V unknown ({value.dropped} never scored)"
    error = "" if value.se is None else f" ± {value.se:.3f}"
    notes = [f"{value.leaves} leaves"]
    notes += [f"{value.dropped} dropped"] if value.dropped else []
    notes += [f"{value.forced} forced"] if value.forced else []
    notes += ["biased"] if value.biased else []
    notes += ["priors assumed"] if value.assumed_priors else []
    notes += ["options missing"] if value.partial else []
    return f"V {float(value.value):.3f}{error} ({', '.join(notes)})"


def _differences(
    rollout: Path, events: Sequence[AnyEvent], tree: Tree, pair: tuple[int, int]
) -> list[Change]:
    places = {event.node: event.place for event in events if isinstance(event, WorldEvent)}
    worlds: list[WorldState] = []
    for node in pair:
        if node >= len(tree):
            raise ConfigError(f"there is no node {node}; the last is {len(tree) - 1}", "--diff")
        if node not in places:
            known = ", ".join(map(str, sorted(places))) or "none"
            raise ConfigError(
                f"the world of node {node} was not written down; those of these nodes were: "
                f"{known} (branches and leaves of a run with --branch)",
                field="--diff",
            )
        file = rollout / places[node]
        try:
            worlds.append(_decoder.decode(file.read_bytes()))
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"cannot be read: {error}", file=str(file)) from None
    return list(changes(*worlds))


def _print_changes(found: Sequence[Change], pair: tuple[int, int], as_json: bool) -> None:
    if as_json:
        for change in found:
            click.echo(msgspec.json.encode(change).decode())
        return
    out: Console = console()
    if not found:
        out.print(f"nodes {pair[0]} and {pair[1]}: the same world")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("part", "what", "change", f"at {pair[0]}", f"at {pair[1]}"):
        table.add_column(name, overflow="fold")
    colours = {"added": "green", "removed": "red", "changed": "yellow"}
    for change in found[:_SHOWN_CHANGES]:
        kind = Text(change.kind, style=colours[change.kind])
        texts = (_cut(_brief(text), 80) for text in (change.before, change.after))
        table.add_row(change.part, _cut(change.key, 80), kind, *texts)
    out.print(table)
    if len(found) > _SHOWN_CHANGES:
        out.print(f"... and {len(found) - _SHOWN_CHANGES} more (--json gives all)")


def _brief(text: str) -> str:
    """Digests as short as a person compares them; --json has them whole."""
    return _DIGEST.sub(r"\1…", text)


def _cut(text: str, width: int) -> str:
    line = text.replace("\n", " ⏎ ")
    return line if len(line) <= width else line[: width - 1] + "…"
