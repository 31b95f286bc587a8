"""`ramify images`: import, list, remove."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from command_line import CommandLine


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own for each test."""
    monkeypatch.setenv("RAMIFY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def root_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("etc/conf")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"one"))
    return path


def test_an_image_comes_is_listed_and_goes(ramify: CommandLine, tmp_path: Path, home: Path) -> None:
    said = ramify("images", "import", root_tar(tmp_path / "root.tar"), "--name", "mine", "--json")
    assert said.code == 0
    (image,) = said.records
    assert (image["names"], image["size_bytes"], image["layers"]) == (["mine:latest"], 3, 1)
    assert ramify("images", "list", "--json").records == [image]
    assert "mine:latest" in ramify("images", "list").out
    gone = ramify("images", "remove", "mine", "--json")
    assert (gone.code, gone.records) == (0, [{"removed": ["mine"], "missing": []}])
    assert ramify("images", "list", "--json").records == []
    assert "ramify images import" in ramify("images", "list").err
    assert list((home / "sandbox" / "store" / "layers").iterdir()) == []


def test_what_is_no_image_or_has_no_name_is_refused(ramify: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    cases = [
        (("import", tmp_path / "text", "--name", "x"), "not a tar archive"),
        (("import", root_tar(tmp_path / "root.tar")), "--name"),
        (("import", tmp_path / "root.tar", "--name", "Not A Name"), "is not an image name"),
        (("import", tmp_path / "missing", "--name", "x"), "does not exist"),
        (("remove", "nobody"), "no image 'nobody'"),
    ]
    for arguments, says in cases:
        said = ramify("images", *arguments)
        assert said.code == 2, arguments
        assert says in said.complaint
    assert ramify("images", "list", "--json").records == []


def test_a_layout_as_a_directory(ramify: CommandLine, tmp_path: Path) -> None:
    """An OCI layout that a tool has left unpacked."""
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = root_tar(tmp_path / "layer.tar").read_bytes()
    manifest = {"config": {"digest": "sha256:c"}, "layers": [{"digest": "sha256:l"}]}
    for name, data in (
        ("l", layer),
        ("c", b'{"config": {"User": "app"}}'),
        ("m", json.dumps(manifest).encode()),
    ):
        (blobs / name).write_bytes(data)
    index = {"manifests": [{"digest": "sha256:m"}]}
    (tmp_path / "layout" / "index.json").write_text(json.dumps(index))
    (tmp_path / "layout" / "oci-layout").write_text("{}")
    said = ramify("images", "import", tmp_path / "layout", "--name", "layout:1", "--json")
    assert said.records[0]["names"] == ["layout:1"]
    assert said.records[0]["size_bytes"] == 3
