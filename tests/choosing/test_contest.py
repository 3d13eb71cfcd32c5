"""What there is to choose among: runs, folders, rankings; what is left out is said."""

from __future__ import annotations

import json
import math

import pytest
from support.painted_runs import make_run, png

from sp_rerank.choosing.contest import gather, with_scorer, with_scores
from sp_rerank.errors import UsageError


def test_a_run_is_one_contest_with_the_scores_of_its_first_scorer(tmp_path):
    run = make_run(tmp_path / "run", {"a@1": [0.1, 0.5, 0.3], "b@2": [1, 2, 3]})
    found = gather([run.path])
    (contest,) = found.contests
    assert (contest.prompt, contest.scorer, contest.scores) == ("a lemon on the beach", "a@1", [0.1, 0.5, 0.3])
    assert [(item.index, item.path, item.sha256) for item in contest.items] == [
        (i, run.image(i), run.rows[i].sha256) for i in range(3)
    ]
    assert found.left_out == []


def test_images_that_cannot_be_chosen_are_left_out_and_said(tmp_path):
    status = {1: "flagged", 2: "dropped"}
    run = make_run(tmp_path / "run", {"a@1": [0.1] * 6}, status=lambda index: status.get(index, "ok"))
    run.image(3).write_bytes(png(99))
    run.image(4).unlink()
    (tmp_path / "more").mkdir()
    for i in (7, 8):
        (tmp_path / "more" / f"{i}.png").write_bytes(png(i))
    (tmp_path / "more" / "broken.png").write_bytes(b"\x89PNG but no more")
    found = gather([run.path, tmp_path / "more"], "a lemon on the beach")
    assert [item.index for item in found.contests[0].items] == [0, 5, None, None]
    assert sorted(found.left_out) == [
        "1 image left out: changed since it was made",
        "1 image left out: dropped by the search",
        "1 image left out: flagged or not finite",
        "2 images left out: missing or not readable",
    ]


def test_runs_of_one_prompt_are_one_contest_and_an_image_is_there_once(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path / name, {"a@1": [0.1, 0.2, 0.3]})
    make_run(tmp_path / "three", {"b@1": [0.1, 0.2]}, prompt="another")
    found = gather([tmp_path / "one", tmp_path / "two", tmp_path / "three"])
    assert [(c.prompt, len(c.items), c.scorer) for c in found.contests] == [
        ("a lemon on the beach", 3, "a@1"), ("another", 2, "b@1"),
    ]  # fmt: skip


def test_a_scorer_whose_scores_not_every_image_has_is_no_prior(tmp_path):
    make_run(tmp_path / "one", {"a@1": [0.1, 0.2, None], "b@2": [0.3, 0.1, 0.2]})
    (contest,) = gather([tmp_path / "one"]).contests
    assert contest.scorer == "b@2"
    assert with_scorer(contest, "a") is None
    chosen = with_scorer(contest, "b")
    assert chosen is not None and chosen.scores == [0.3, 0.1, 0.2]


def test_new_scores_leave_out_images_without_one(tmp_path):
    make_run(tmp_path / "one", {"a@1": [0.1, 0.2, 0.3]})
    (contest,) = gather([tmp_path / "one"]).contests
    first, second, third = (item.sha256 for item in contest.items)
    assert with_scores(contest, "c@1", {first: 5.0, second: math.nan, third: 4.0}).scores == [5.0, 4.0]


def test_a_ranking_brings_its_prompt_and_scores(tmp_path):
    rows = []
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        rows.append({"file": str(tmp_path / f"{i}.png"), "scores": {"a@1": i / 10}})
    record = {"prompt": "two cats", "scorers": ["a@1"], "ranking": rows}
    (tmp_path / "ranked.json").write_text(json.dumps(record))
    (contest,) = gather([tmp_path / "ranked.json"]).contests
    assert (contest.prompt, contest.scores) == ("two cats", [0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "a.png").write_bytes(png(1)), "no run folder, and no prompt was given"),
        (lambda folder: (folder / "a.json").write_text("[]"), "no run folder, and no prompt"),
        (lambda folder: make_run(folder / "run", {"a": [0.1]}), "expected two usable images of a prompt, found 1"),
        (lambda folder: make_run(folder / "run", {"a": [0.1, 0.2]}, prompt=None), "names no prompt"),
    ],
)
def test_what_cannot_be_chosen_among_is_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UsageError, match=message):
        gather([tmp_path / "run" if (tmp_path / "run").is_dir() else tmp_path])


def test_a_file_that_is_no_ranking_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UsageError, match="rank --json"):
        gather([tmp_path / "a.json"])


def test_a_place_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="found none of this name"):
        gather([tmp_path / "none"], "a lemon")
