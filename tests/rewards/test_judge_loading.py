"""Rubrics by name: in a file, in a module, as they are or made by a function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ramify import Judge, JudgeReward, Rubric
from ramify.contracts.errors import ConfigError, UsageError
from ramify.contracts.model import Model
from ramify.planes.reward.function import FunctionReward
from ramify.planes.reward.loading import load_rubric
from ramify.testing.scripted_model import ScriptedModel


def exact(completion: list[object], answer: str) -> float:
    return float(str(completion) == answer)


def judged(judge_model: Model) -> JudgeReward:
    return JudgeReward(Judge(judge_model, "Good?"))


def pair() -> Rubric:
    return Rubric([exact])


def bare():
    return exact


def wrong() -> int:
    return 3


RUBRIC = Rubric([exact])
HERE = __name__


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("exact", FunctionReward),
        ("pair", Rubric),
        ("bare", FunctionReward),
        ("RUBRIC", Rubric),
        ("judged", JudgeReward),
    ],
)
def test_what_it_may_be(name: str, kind: type) -> None:
    assert isinstance(load_rubric(f"{HERE}:{name}", ScriptedModel([])), kind)


@pytest.mark.parametrize(
    ("place", "error", "says"),
    [
        ("rubric", ConfigError, "write file.py:name"),
        (":name", ConfigError, "write file.py:name"),
        ("no_such_module_here:x", ConfigError, "cannot be imported: ModuleNotFoundError"),
        ("no/such/file.py:x", ConfigError, "there is no such file"),
        (f"{HERE}:nothing", ConfigError, "there is no 'nothing' in it"),
        (f"{HERE}:HERE", ConfigError, "is a str, not a reward"),
        (f"{HERE}:wrong", ConfigError, "makes an int, not a reward"),
        (f"{HERE}:Rubric", ConfigError, "Rubric is a class; give an object of it"),
        (f"{HERE}:judged", UsageError, "--judge-model"),
    ],
)
def test_what_it_may_not_be(place: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_rubric(place)


def test_a_file_may_hold_dataclasses_and_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "rubric.py"
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    b: int\n\ndef one(answer):\n    return {}\n"
    )
    file.write_text(text.format(1))
    first = load_rubric(f"{file}:one")
    file.write_text(text.format(22))
    assert load_rubric(f"{file}:one") is not first


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    places: list[str] = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rubric.py").write_text(
            f"from ramify import Rubric\nwhole = Rubric([lambda: 1.0], name={name!r})\n"
        )
        places.append(f"{tmp_path / name / 'rubric.py'}:whole")
    found = [load_rubric(place) for place in places]
    assert [rubric.name for rubric in found if isinstance(rubric, Rubric)] == ["a", "b"]


@dataclass
class Own:
    """A reward of somebody's own."""

    async def score(self, node: object, ctx: object) -> object:
        return None


def test_a_class_without_arguments_is_made() -> None:
    assert isinstance(load_rubric(f"{HERE}:Own"), Own)
