"""Manifests: what is read, what is refused and how, and that nothing else can come of a file."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import SMALL

from ramify.contracts.errors import ConfigError, UnknownNameError
from ramify.planes.environment.manifest import Manifest, load_manifest, parse_manifest
from ramify.planes.environment.readiness import probes

HEAD = '[environment]\nname = "w"\n'
SERVICE = '[[environment.services]]\nname = "mail"\ncommand = "serve"\nport = 8000\n'


def read(text: str) -> Manifest:
    return parse_manifest(text.encode(), Path("/somewhere/manifest.toml"))


DESIGN = """
[environment]
name = "chi-bench"
image = "chi-bench:latest"
owns_lifecycle = true
isolation = "per_task"
topology = "in-sandbox"
[[environment.services]]
name = "gmail"
command = "gmail serve"
port = 8001
health = "/health"
on_branch = "live"
[environment.task_selection]
mechanism = "env_var"
key = "CHI_BENCH_TASK_ID"
inject_into = "entrypoint"
[environment.readiness]
http = ["http://localhost:8023/health"]
tcp = []
timeout_sec = 120
[[environment.state]]
kind = "sqlite"
paths = ["/data/*.db"]
digest = "sha256sum /data/x"
[verifier]
kind = "agent"
hidden_from_agent = ["expectations.json", "tasks/*/fixtures"]
"""


def test_the_whole_of_it() -> None:
    manifest = read(DESIGN)
    assert manifest.starts_entrypoint
    assert manifest.selection_key == "CHI_BENCH_TASK_ID"
    assert [service.name for service in manifest.services()] == ["gmail"]
    assert manifest.state[0].digest == "sha256sum /data/x"
    assert manifest.verifier.hidden_from_agent == ["expectations.json", "tasks/*/fixtures"]


def test_benchflows_keys() -> None:
    """Another format's manifest: an image that starts itself, or a catalogue that we start."""
    one = read(
        '[environment]\nname = "c"\nimage = "c:latest"\nowns_lifecycle = true\n'
        "keep_alive = false\nports = [8020, 8023]\n[environment.task_selection]\n"
        'mechanism = "env_var"\nkey = "T"\ninject_into = "entrypoint"\n'
        '[environment.forward_env]\nkeys = ["API_KEY"]\n'
        '[environment.state]\nkind = "sqlite"\npaths = ["/data/a.db"]\n'
    )
    assert one.starts_entrypoint
    assert one.state[0].paths == ["/data/a.db"]
    many = read(
        '[environment]\nname = "e"\nbase_image = "b:1"\nowns_lifecycle = false\n'
        '[environment.task_selection]\nmechanism = "image"\n[environment.readiness]\n'
        'timeout_sec = 60\n[[environment.services]]\nname = "gmail"\ncommand = "gmail serve"\n'
        'port = 9001\n[[environment.services]]\nname = "slack"\ncommand = "slack serve"\n'
        'port = 9002\nhealth_path = "/ok"\n'
    )
    assert not many.starts_entrypoint
    asked = probes(many.environment.readiness, many.services())
    assert [(probe.port, probe.path) for probe in asked] == [(9001, "/health"), (9002, "/ok")]
    assert [service.name for service in many.services(["mock-slack"])] == ["slack"]
    own = read(
        '[environment]\nname = "o"\nowns_lifecycle = true\n'
        '[environment.task_selection]\nmechanism = "image"\n'
    )
    assert own.starts_entrypoint


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("", "[environment]", "is missing"),
        ("[environment]\n", "environment.name", "is required"),
        (HEAD + "isolaton = 1\n", "environment.isolaton", "did you mean `isolation`"),
        (HEAD + 'isolation = "shared"\n', "environment.isolation", "invalid enum value"),
        ('[environment]\nname = "a b"\n', "environment.name", "is no name"),
        (HEAD + 'image = "a"\nbuild = "b"\n', "environment.build", "stands beside `image`"),
        (HEAD + 'files = "../x"\n', "environment.files", "beside the manifest"),
        (HEAD + 'workdir = "app"\n', "environment.workdir", "absolute"),
        (HEAD + "owns_lifecycle = true\n", "environment.owns_lifecycle", "there is no image"),
        (HEAD + "[environment.task_selection]\n", "task_selection.key", "is required"),
        (HEAD + '[environment.task_selection]\nkey = "1x"\n', "task_selection.key", "variable"),
        (HEAD + SERVICE + SERVICE, "services.mail", "is there twice"),
        (
            HEAD + SERVICE + SERVICE.replace("mail", "post"),
            "services.post.port",
            "8000 is the port of mail too",
        ),
        (HEAD + SERVICE + 'on_brunch = "live"\n', "services.on_brunch", "did you mean `on_branch`"),
        (HEAD + SERVICE + 'on_branch = "hook"\n', "services.mail.on_branch", "needs an [["),
        (HEAD + SERVICE + 'depends_on = ["mial"]\n', "depends_on", "did you mean 'mail'"),
        (HEAD + SERVICE + 'depends_on = ["mail"]\n', "environment.services", "in a circle"),
        (HEAD + SERVICE + 'health = "health"\n', "services.mail.health", '"/health"'),
        (
            HEAD + SERVICE.replace("port = 8000\n", 'health = "/h"\n'),
            "mail.health",
            "needs a `port`",
        ),
        (HEAD + SERVICE.replace("8000", "80000"), "environment.services[0].port", "65535"),
        (
            HEAD + "owns_lifecycle = false\n" + SERVICE.replace('command = "serve"\n', ""),
            "services.mail.command",
            "is required",
        ),
        (HEAD + SERVICE.replace("mail", "entrypoint"), "services.entrypoint", "rename it"),
        (
            HEAD + '[environment.readiness]\nhttp = ["http://example.org/"]\n',
            "readiness.http",
            "loopback",
        ),
        (HEAD + '[environment.readiness]\nhttp = ["http://localhost:x/"]\n', "http", "no URL"),
        (HEAD + '[[environment.state]]\nkind = "sqlite"\n', "state[0].paths", "is required"),
        (
            HEAD + '[[environment.state]]\nkind = "sqlite"\npaths = ["a.db"]\n',
            "state[0].paths",
            "absolute",
        ),
        (
            HEAD + '[[environment.state]]\nkind = "sqlite"\npaths = ["/a"]\nurl = "x"\n',
            "state[0].url",
            "no meaning",
        ),
        (
            HEAD + '[[environment.state]]\nkind = "sqlite"\npaths = ["/a"]\n' * 2,
            "state[1]",
            "is there twice",
        ),
        (
            HEAD + '[[environment.state]]\nkind = "postgres"\nurl = "postgresql://db.example/x"\n',
            "state[0].url",
            "loopback",
        ),
        (
            HEAD + '[[environment.state]]\nkind = "http"\nservice = "m"\nsnapshot = "/s"\n'
            'restore = "/r"\n',
            "state[0].service",
            "unknown service 'm'",
        ),
        (
            HEAD + SERVICE + '[[environment.state]]\nkind = "http"\nservice = "mail"\n'
            'snapshot = "s"\nrestore = "/r"\n',
            "state[0].snapshot",
            "path of the service",
        ),
        (HEAD + '[[environment.state]]\nkind = "mysql"\n', "environment.state[0].kind", "mysql"),
        (HEAD + '[verifier]\nhidden_from_agent = ["../x"]\n', "hidden_from_agent", "no pattern"),
        (HEAD + "[verifer]\n", "verifer", "did you mean `verifier`"),
        ("[environment\n", "", "not valid TOML"),
    ],
)
def test_refusals_name_file_field_and_remedy(text: str, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.file == "/somewhere/manifest.toml"
    assert field in (caught.value.field or "")
    assert words.lower() in caught.value.message.lower()


def test_places_are_looked_at(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.toml"
    with pytest.raises(ConfigError, match="no such manifest"):
        load_manifest(manifest)
    manifest.write_text(HEAD + 'files = "files"\n')
    with pytest.raises(ConfigError, match="there is no directory"):
        load_manifest(manifest)
    manifest.write_text(HEAD + 'build = "image"\n')
    with pytest.raises(ConfigError, match="no Dockerfile"):
        load_manifest(manifest)
    manifest.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_manifest(manifest)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_manifest(tmp_path)


def test_order_follows_needs() -> None:
    text = HEAD + "".join(
        f'[[environment.services]]\nname = "{name}"\ncommand = "x"\ndepends_on = {needs}\n'
        for name, needs in {"a": ["c"], "b": [], "c": ["b"]}.items()
    )
    assert [service.name for service in read(text).services()] == ["b", "c", "a"]
    assert [service.name for service in read(text).services(["c"])] == ["b", "c"]
    with pytest.raises(UnknownNameError, match="did you mean|known"):
        read(text).services(["d"])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_manifest_or_one_error(data: bytes) -> None:
    assert _outcome(data) in (None, "/somewhere/manifest.toml")


def _outcome(data: bytes) -> str | None:
    """None for a manifest, else the file that the error names. Anything else is raised."""
    try:
        parse_manifest(data, Path("/somewhere/manifest.toml"))
    except ConfigError as error:
        return error.file
    return None


def _paths(table: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(table, dict):
        for key, value in table.items():
            found += _paths(value, (*path, key))
    if isinstance(table, list):
        for index, value in enumerate(table):
            found += _paths(value, (*path, index))
    return found


_VALUES = st.one_of(
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.booleans(),
    st.text(max_size=12),
    st.lists(st.one_of(st.text(max_size=6), st.integers()), max_size=3),
    st.just({}),
    st.datetimes(),
    st.sampled_from(
        ["live", "hook", "tcp", "/", "//", "..", "sqlite", "process", "\0", "http://["]
    ),
)
_WHOLE = [tomllib.loads(DESIGN), tomllib.loads((SMALL / "manifest.toml").read_text())]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(_WHOLE), st.data())
def test_any_change_gives_a_manifest_or_one_error(
    whole: dict[str, Any], data: st.DataObject
) -> None:
    """Values of any type in any place, keys that go, keys that come."""
    raw = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        paths = _paths(raw)
        if not paths:
            break
        *way, last = data.draw(st.sampled_from(paths))
        place = raw
        for key in way:
            place = place[key]
        kind = data.draw(st.sampled_from(["set", "remove", "add"]))
        if kind == "remove":
            del place[last]
        elif kind == "add" and isinstance(place, dict):
            place[data.draw(st.text(min_size=1, max_size=8))] = data.draw(_VALUES)
        else:
            place[last] = data.draw(_VALUES)
    assert _outcome(_toml(raw).encode()) in (None, "/somewhere/manifest.toml")


def _toml(table: dict[str, Any]) -> str:
    """Any decoded table as TOML again, all of it inline."""
    return "\n".join(f"{_key(key)} = {_value(value)}" for key, value in table.items())


def _key(key: str) -> str:
    return _value(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08X}" for char in value) + '"'
    if isinstance(value, int | float):
        return repr(value)
    return value.isoformat()
