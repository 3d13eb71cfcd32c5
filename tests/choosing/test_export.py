"""Answers on their way to training: the layout that the readers know, images wherever they are now."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pytest
from support.answers import PROMPT, answer_of
from support.painted_runs import make_run, png

from sp_rerank.choosing.export import COLUMNS, rows, write_rows
from sp_rerank.choosing.store import AnswerStore
from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.train.readers import read_preferences


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "lemon", {"a@1": [0.1, 0.5, 0.3]})


@pytest.fixture
def store(tmp_path, run):
    digests = [run.rows[i].sha256 for i in range(3)]
    with AnswerStore(tmp_path / "runs" / "labels.sqlite") as opened:
        opened.remember(PROMPT, {digests[i]: run.image(i) for i in range(3)})
        opened.add(answer_of(digests[0], digests[1], 1.0, annotator="ada", shown_at=5.0))
        opened.add(answer_of(digests[2], digests[0], 0.0, annotator="ben", answered_ms=150, shown_at=6.0))
        opened.add(answer_of(digests[2], digests[1], 0.5, both_bad=True, repeat_of="x", shown_at=7.0))
        opened.add(answer_of(digests[2], digests[1], None))
        yield opened


def pairs_of(place, **more):
    (group,) = read_preferences(place, **more)
    return [(group.images[p.first].path.name, group.images[p.second].path.name, p.label) for p in group.pairs]


EXPECTED = [("00000.png", "00001.png", 1.0), ("00002.png", "00000.png", 0.0), ("00002.png", "00001.png", 0.5)]


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_what_is_written_is_read_as_preferences(store, tmp_path, name, caplog):
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / name
    with caplog.at_level(logging.WARNING):
        assert write_rows(store, file) == 3
    assert "1 skipped questions left out" in caplog.text
    assert pairs_of(file) == EXPECTED
    text = file.read_text()
    rows = list(csv.DictReader(text.splitlines())) if name.endswith("csv") else [*map(json.loads, text.splitlines())]
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["first"] == "../runs/lemon/images/00000.png", "a path from the file on"
    assert [str(row["both_bad"]) for row in rows] == ["0", "0", "1"]
    assert [str(row["repeat"]) for row in rows] == ["0", "0", "1"]


def test_the_store_itself_is_read_as_preferences(store, tmp_path):
    assert pairs_of(store.path) == EXPECTED
    assert pairs_of(tmp_path / "runs") == EXPECTED, "the folder that holds one"
    (group,) = read_preferences(store.path)
    assert [pair.extra["annotator"] for pair in group.pairs] == ["ada", "ben", "me"]


def test_the_first_image_is_the_one_that_was_on_the_left(store, run):
    """What is believed to be the best is always the first of a question: its side is what was drawn at random."""
    digests = [run.rows[i].sha256 for i in range(3)]
    store.add(answer_of(digests[0], digests[1], 1.0, id="turned", first_side="right"))
    last = list(rows(store))[-1]
    assert (Path(last["first"]).name, Path(last["second"]).name, last["label"]) == ("00001.png", "00000.png", 0.0)


def test_one_persons_answers(store, tmp_path):
    assert write_rows(store, tmp_path / "ada.csv", annotator="ada") == 1
    with pytest.raises(NothingUsableError, match="no answer by eve"):
        write_rows(store, tmp_path / "eve.csv", annotator="eve")
    assert not (tmp_path / "eve.csv").exists()


def test_all_moved_together_is_found(store, tmp_path):
    store.close()
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert pairs_of(tmp_path / "moved" / "labels.sqlite") == EXPECTED


def test_images_moved_apart_are_found_by_their_hash(store, run, tmp_path, caplog):
    run.path.rename(tmp_path / "elsewhere")
    with pytest.raises(NothingUsableError, match="whose images are there"):
        list(read_preferences(store.path))
    assert pairs_of(store.path, images=tmp_path / "elsewhere") == EXPECTED
    (tmp_path / "elsewhere" / "images" / "00001.png").write_bytes(png(88))
    with caplog.at_level(logging.WARNING):
        (left,) = rows(store, images=tmp_path / "elsewhere")
    assert (Path(left["first"]).name, left["label"]) == ("00002.png", 0.0)
    assert "2 answers left out: their images are gone or were changed" in caplog.text


def test_a_name_that_is_no_table_is_refused(store, tmp_path):
    with pytest.raises(UsageError, match=r"ends in .csv or .jsonl"):
        write_rows(store, tmp_path / "answers.txt")
