"""The schemas say what the reader takes and what a run answers."""

from __future__ import annotations

from importlib.resources import files

import jsonschema
import pytest
import yaml
from test_config import FULL, SEED

from ramify.apps.pipeline.schemas import schema_text, schemas


@pytest.mark.parametrize("name", ["agent", "response"])
def test_the_files_are_the_schemas(name: str) -> None:
    kept = files("ramify.apps.pipeline").joinpath(f"schema/{name}.schema.json").read_text()
    assert kept == schema_text(name) + "\n", f"run: ramify verify --schema {name} > that file"
    jsonschema.Draft202012Validator.check_schema(schemas()[name])


@pytest.mark.parametrize("text", [SEED, FULL.replace("deep: !their-tag 1", "")])
def test_good_files_meet_the_schema(text: str) -> None:
    given = yaml.load(text, Loader=yaml.BaseLoader)  # texts as they stand, as an editor sees them
    loaded = yaml.safe_load(text)
    loaded["verification"]["env"] = given["verification"].get("env", {})
    for step, plain in zip(
        loaded["verification"]["steps"], given["verification"]["steps"], strict=True
    ):
        step |= {"name": plain["name"], "command": plain["command"]}
        if "env" in plain:
            step["env"] = plain["env"]
    jsonschema.Draft202012Validator(schemas()["agent"]).validate(loaded)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"verification": {}},
        {"verification": {"steps": []}},
        {"verification": {"steps": [{"name": "a"}]}},
        {"verification": {"steps": [{"name": "a", "command": "b", "if": False}]}},
        {"verification": {"steps": [{"name": "a", "command": "b", "timeout": "soon"}]}},
        {"verification": {"steps": [{"name": "a", "command": "b", "network": "on"}]}},
        {"verification": {"steps": [{"name": "a", "command": "b"}], "skip": ["a"]}},
        {"verification": {"steps": [{"name": "a", "command": "b"}], "cache": True}},
        {"verification": {"steps": [{"name": "a", "command": "b"}], "secrets": ["A=b"]}},
    ],
)
def test_wrong_files_do_not(wrong: dict[str, object]) -> None:
    validator = jsonschema.Draft202012Validator(schemas()["agent"])
    assert not validator.is_valid(wrong)
