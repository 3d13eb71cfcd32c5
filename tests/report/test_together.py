"""Runs of one prompt: grouped in the overview with what tells them apart, and all candidates in one sheet."""

from __future__ import annotations

import os
import re

import pytest
from support.painted_runs import make_run

from sp_rerank.errors import UsageError
from sp_rerank.report.overview import write_overview
from sp_rerank.report.together import joint_sheet
from sp_rerank.run.folder import RunDir


def words(html):
    """What a page says, each text of its own on a line."""
    text = re.sub(r"<(script|style)[\s\S]*?</\1>", "", html)
    return [line for part in re.sub(r"<[^>]*>", "\n", text).split("\n") if (line := " ".join(part.split()))]


def scores_of(run):
    names = run.config.scorers
    return {name: {index: row.scores.get(name) for index, row in run.rows.items()} for name in names}


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / "few", {"a@1": [0.1, 0.6]}, steps=8, seed=40),
        make_run(tmp_path / "many steps", {"a@1": [0.3, 0.9, 0.2], "b@2": [0.3, 0.1, 0.2]}, steps=20, seed=40),
    ]


# The overview


def test_runs_of_one_prompt_stand_together_and_are_told_apart(tmp_path, runs):
    make_run(tmp_path / "other", {"a@1": [0.99]}, prompt="a penguin")
    for age, run in enumerate(runs):
        os.utime(run.path / "candidates.jsonl", (1e9 - age, 1e9 - age))
    page = write_overview(tmp_path)[0].read_text(encoding="utf-8")
    said = words(page)
    group = said.index("a lemon on the beach")
    assert said[group + 1] == "2 runs"
    assert "sp-rerank compare 'many steps' few --sheet both.html" in page.replace("&#39;", "'")
    assert said.count("a lemon on the beach") == 1
    first, second = (said.index(count) for count in ("3 candidates", "2 candidates"))
    assert first < second  # the older one
    for place, facts in ((first, ["seeds 40–42", "mini", "steps 20"]), (second, ["seeds 40–41", "mini", "steps 8"])):
        assert said[place + 1 : place + 4] == facts
        assert re.fullmatch(r"2001-09-0\d \d\d:\d\d", said[place + 4])
    assert said.count("the highest of these runs") == 1
    assert said.index("the highest of these runs") < second  # .9 by a; b has scored one of them only
    alone = said.index("a penguin")
    assert "1 candidates" not in said
    assert said[alone + 1 : alone + 4] == ["1 candidate", "seed 40", "mini"]


# One sheet


def test_all_candidates_are_in_one_order_with_their_runs(tmp_path, runs):
    page = joint_sheet(runs, list(map(scores_of, runs)), tmp_path).decode()
    items = re.findall(
        r"<li><a href=\"([^\"]*)\".*?letter-\d\">(\w)</b> <span>(\d)</span> .*?>([\d.]+)</span> <i>#(\d+)", page
    )
    assert items == [
        ("./many%20steps/index.html#c1", "B", "1", "0.900", "41"),
        ("./few/index.html#c1", "A", "2", "0.600", "41"),
        ("./many%20steps/index.html#c0", "B", "3", "0.300", "40"),
        ("./many%20steps/index.html#c2", "B", "4", "0.200", "42"),
        ("./few/index.html#c0", "A", "5", "0.100", "40"),
    ]
    said = words(page)
    assert "By a the first is seed 41 of B; of the best 5: 2 of A, 3 of B." in said
    assert "5 candidates in one order, by a" in said
    assert [line for line in said if line.startswith("its best")] == [
        "its best is 2nd of all, 0.600",
        "its best is 1st of all, 0.900",
    ]
    assert {"steps 8", "steps 20"} <= set(said)
    assert "./many%20steps/images/00001.png" in page


def test_scores_that_are_not_in_the_folders_order_too(tmp_path, runs):
    page = joint_sheet(runs, [{"new": {0: 1.0, 1: None}}, {"new": {2: 2.0}}], tmp_path).decode()
    assert "By new the first is seed 42 of B; of the best 2: 1 of A, 1 of B." in words(page)


def test_what_cannot_be_in_one_sheet(tmp_path, runs):
    other = make_run(tmp_path / "other", {"a@1": [0.9]}, prompt="a penguin")
    with pytest.raises(UsageError, match="of 2 prompts; expected runs of one prompt"):
        joint_sheet([runs[0], other], [scores_of(runs[0]), scores_of(other)], tmp_path)
    with pytest.raises(UsageError, match="a sheet of 1 runs; expected from 2 to 26"):
        joint_sheet(runs[:1], [scores_of(runs[0])], tmp_path)
    with pytest.raises(UsageError, match="no scorer has scored all of these runs"):
        joint_sheet(runs, [{"a@1": {0: 0.1}}, {"b@2": {0: 0.1}}], tmp_path)


def test_an_image_that_is_gone_has_its_place(tmp_path, runs):
    runs[1].image(1).unlink()
    page = joint_sheet([RunDir.read(run.path) for run in runs], list(map(scores_of, runs)), tmp_path).decode()
    assert page.count("no image") == 2  # of the best, and in the order
