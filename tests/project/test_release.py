"""A release is made from the commit alone: the same bytes twice, a small container, no stored password."""

from __future__ import annotations

import importlib.util
import io
import re
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from support.repository import ROOT


@pytest.fixture(scope="module")
def sessions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def archive(path: Path, names: list[str], mtime: int, mode: int, owner: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode, entry.uname = len(name), mtime, mode, owner
            tar.addfile(entry, io.BytesIO(name.encode()))
    return path


def test_packed_by_anybody_at_any_time_an_archive_is_the_same(sessions, tmp_path):
    first = archive(tmp_path / "a.tar.gz", ["p/a.py", "p/b.py"], 1, 0o600, "ada")
    second = archive(tmp_path / "b.tar.gz", ["p/b.py", "p/a.py"], 2_000_000_000, 0o664, "ben")
    assert first.read_bytes() != second.read_bytes()
    for path in (first, second):
        sessions.repack(path, 1_700_000_000)
    assert first.read_bytes() == second.read_bytes()
    assert int.from_bytes(first.read_bytes()[4:8], "little") == 1_700_000_000  # gzip's own time
    with tarfile.open(first) as tar:
        found = [(entry.name, entry.mtime, entry.mode) for entry in tar]
        assert found == [("p/a.py", 1_700_000_000, 0o644), ("p/b.py", 1_700_000_000, 0o644)]
        held = tar.extractfile("p/b.py")
        assert held
        assert held.read() == b"p/b.py"


def test_the_container_is_ten_lines_and_gets_what_the_build_needs():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert len(lines) <= 10
    sent = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {project["readme"], "pyproject.toml", "sp_rerank", "train", "pipelines"}
    needed |= {pattern.partition("/")[0] for pattern in project["license-files"]}
    assert needed <= sent
    assert [name for name in sent if not (ROOT / name).exists()] == []
    extras = re.search(r"/src\[([\w,]+)\]", "\n".join(lines))
    assert extras
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def test_the_release_asks_for_no_password_and_runs_sessions_that_exist(sessions):
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert "password" not in text.replace("without a stored password", "")
    assert "secrets." not in text
    assert text.count("id-token: write") == 1
    assert text.index("publish:") < text.index("id-token: write")  # the build gets no right to publish
    for names in re.findall(r"nox -s ([\w ]+)$", text, re.MULTILINE):
        assert [name for name in names.split() if not hasattr(sessions, name)] == []
