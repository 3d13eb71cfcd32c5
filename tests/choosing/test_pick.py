"""Picks: copies as they were committed, a list, marks in the same store as the answers."""

from __future__ import annotations

import json

import pytest
from support.painted_runs import make_run, png

from sp_rerank.choosing.pick import pick
from sp_rerank.choosing.store import AnswerStore
from sp_rerank.errors import StorageError, UsageError


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", {"a@1": [0.1, 0.5, 0.3, 0.2, 0.4]})


@pytest.fixture
def store(tmp_path):
    with AnswerStore(tmp_path / "labels.sqlite") as opened:
        yield opened


def test_the_copies_are_the_files_of_the_run(run, store, tmp_path):
    done = pick(run, [3, 1], tmp_path / "best", rejected=[0], store=store)
    assert [path.name for path in done.files] == ["01_seed43.png", "02_seed41.png"]
    assert [path.read_bytes() for path in done.files] == [run.image_bytes(3), run.image_bytes(1)]
    listed = json.loads((tmp_path / "best" / "picks.json").read_text())
    assert [(entry["file"], entry["index"], entry["seed"]) for entry in listed["picks"]] == [
        ("01_seed43.png", 3, 43), ("02_seed41.png", 1, 41),
    ]  # fmt: skip
    assert [entry["index"] for entry in listed["rejected"]] == [0]
    assert listed["picks"][0]["sha256"] == run.rows[3].sha256
    assert "/" not in listed["run"]


def test_marks_are_kept_beside_answers_and_all_images_are_remembered(run, store, tmp_path):
    pick(run, [3], tmp_path / "best", rejected=[0], store=store, annotator="ada")
    marks = {mark.sha256: (mark.kind, mark.annotator) for mark in store.marks()}
    assert marks == {run.rows[3].sha256: ("favorite", "ada"), run.rows[0].sha256: ("reject", "ada")}
    assert len(store.images()["a lemon on the beach"]) == 5


def test_other_picks_of_the_same_run_take_the_place_of_older_ones(run, store, tmp_path):
    out = tmp_path / "best"
    pick(run, [3, 1], out, store=store)
    (out / "mine.txt").write_text("stays")
    pick(run, [4], out, store=store)
    assert sorted(path.name for path in out.iterdir()) == ["01_seed44.png", "mine.txt", "picks.json"]


def test_picks_of_another_run_are_not_overwritten(run, store, tmp_path):
    other = make_run(tmp_path / "other", {"a@1": [0.1, 0.5]})
    pick(run, [3], tmp_path / "best", store=store)
    with pytest.raises(UsageError, match="picks of another run, 'run'; choose another folder"):
        pick(other, [1], tmp_path / "best", store=store)
    assert [path.name for path in (tmp_path / "best").glob("*.png")] == ["01_seed43.png"]


def test_rejecting_alone_copies_nothing(run, store, tmp_path):
    done = pick(run, [], tmp_path / "best", rejected=[2, 4], store=store)
    assert done.files == () and not (tmp_path / "best").exists()
    assert {mark.kind for mark in store.marks()} == {"reject"}


@pytest.mark.parametrize(
    ("picked", "rejected", "message"),
    [([], [], "got none"), ([1, 1], [], "got 1 twice"), ([1], [1], "got 1 twice"), ([9], [], "holds no candidate 9")],
)
def test_what_cannot_be_picked_is_refused(run, store, tmp_path, picked, rejected, message):
    with pytest.raises(UsageError, match=message):
        pick(run, picked, tmp_path / "best", rejected=rejected, store=store)
    assert store.marks() == [] and not (tmp_path / "best").exists()


def test_a_changed_image_is_not_picked(run, store, tmp_path):
    run.image(1).write_bytes(png(77))
    with pytest.raises(StorageError, match="changed since it was committed"):
        pick(run, [0, 1], tmp_path / "best", store=store)
    assert store.marks() == []
