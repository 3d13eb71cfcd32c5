"""Scorers that compare pairs, and scorers that say how sure they are: in rank, compare and generate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageStat
from support.doubles import SeededPipe

from sp_rerank import compare, generate, rank
from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.rank import rank_files
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.stats.agreement import kendall
from sp_rerank.stats.calibration import margin_of_sigmas

SETTINGS = {"n": 12, "batch_size": 4, "guidance_scale": 1.0}


def light(image):
    return sum(ImageStat.Stat(image).mean) / 765


class Lighter:
    """The lighter one is better; the one that is seen first gets a bonus."""

    name = "lighter"

    def __init__(self, steep=50.0, bonus=0.0):
        self.steep, self.bonus, self.asked = steep, bonus, 0

    def compare(self, prompt, first, second):
        self.asked += len(first)
        gaps = [light(a) - light(b) for a, b in zip(first, second, strict=True)]
        return torch.tensor([self.steep * gap + self.bonus for gap in gaps]).sigmoid()


class Unsure(BrightnessScorer):
    """Brightness, known up to a standard deviation."""

    name = "unsure"

    def __init__(self, sigma):
        self.sigma = sigma

    def score_with_sigma(self, prompt, images):
        scores = self.score(prompt, images)
        return scores, torch.full_like(scores, self.sigma)


def grays(*values):
    return [Image.new("RGB", (8, 8), (value,) * 3) for value in values]


def test_images_are_ranked_by_comparisons():
    ranked = rank(Lighter(), "a lemon", grays(100, 250, 50, 150, 200))
    assert [entry.candidate.index for entry in ranked] == [1, 4, 3, 0, 2]


def test_a_side_that_is_preferred_is_evened_out():
    ranked = rank(Lighter(steep=20.0, bonus=1.0), "a lemon", grays(*range(0, 250, 25)))
    assert [entry.candidate.index for entry in ranked] == list(range(9, -1, -1))


def test_what_is_not_told_apart_ties():
    alike = rank(Lighter(), "a lemon", grays(100, 100, 100))
    assert {entry.tie_group for entry in alike} == {1}


def test_a_hundred_images_take_few_comparisons():
    scorer = Lighter()
    rank(scorer, "a lemon", grays(*range(100)))
    assert 2 * 13 * 50 < scorer.asked <= 2 * 14 * 50  # now and then one finds no new partner


def test_files_are_ranked_by_pairs_and_by_scores(tmp_path: Path):
    files = []
    for number, image in enumerate(grays(100, 250, 50)):
        files.append(tmp_path / f"{number}.png")
        image.save(files[-1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = rank_files([Lighter(), BrightnessScorer()], "a lemon", [tmp_path / "broken.png", *files])
    assert [row.file.name for row in found.files] == ["1.png", "0.png", "2.png"]
    assert list(found.files[0].scores) == ["lighter", "brightness"] and len(found.unreadable) == 1
    turned = rank_files([BrightnessScorer(), Lighter()], "a lemon", files)
    assert list(turned.files[0].scores) == ["brightness", "lighter"]


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda n: torch.full((n,), 1.5), "got 1.5"),
        (lambda n: torch.full((n,), torch.nan), "got nan"),
        (lambda n: torch.zeros(n + 1), r"got shape \(2,\)"),
        (lambda n: [0.5] * n, "got a list"),
        (lambda n: None, "got a NoneType"),
    ],
)
def test_an_answer_that_is_no_probability_is_refused(answer, got: str):
    scorer = Lighter()
    scorer.compare = lambda prompt, first, second: answer(len(first))
    with pytest.raises(UsageError, match=f"scorer lighter: expected the probability .* {got}"):
        rank(scorer, "a lemon", grays(1, 2))


def test_a_failure_names_the_scorer():
    scorer = Lighter()
    scorer.compare = lambda prompt, first, second: 1 / 0
    with pytest.raises(UsageError, match="scorer lighter failed: ZeroDivisionError"):
        rank(scorer, "a lemon", grays(1, 2))


def test_a_run_is_compared_by_pairs_and_keeps_the_utilities(tmp_path: Path):
    generate("a lemon", pipe=SeededPipe(), scorer=BrightnessScorer(), out=tmp_path / "run", **SETTINGS)
    scorer = Lighter(steep=500.0)
    (found,) = compare([RunDir.read(tmp_path / "run")], [scorer], steady=True).runs
    assert found.scores.keys() == {"brightness", "lighter"} and len(found.scores["lighter"]) == 12
    rows = RunDir.read(tmp_path / "run").rows
    by_pairs, by_score = ([row.scores[name] for row in rows.values()] for name in ("lighter", "brightness"))
    assert kendall(by_pairs, by_score) > 0.9
    asked = scorer.asked
    compare([RunDir.read(tmp_path / "run")], [scorer])
    assert scorer.asked == asked  # the folder holds them


def test_a_run_cannot_be_made_by_pairs(tmp_path: Path):
    pipe = SeededPipe()
    with pytest.raises(UsageError, match="scorer lighter compares pairs of images"):
        generate("a lemon", pipe=pipe, scorer=Lighter(), out=tmp_path / "run", **SETTINGS)  # pyright: ignore


def test_a_scorer_that_is_unsure_ties_what_its_sigma_covers():
    images = grays(100, 110, 200)
    gap = 10 / 255
    wide, narrow = (margin / margin_of_sigmas([1.0]) for margin in (1.05 * gap, 0.95 * gap))
    assert [entry.tie_group for entry in rank(Unsure(wide), "a lemon", images)] == [1, 2, 2]
    assert [entry.tie_group for entry in rank(Unsure(narrow), "a lemon", images)] == [1, 2, 3]
    assert [entry.tie_group for entry in rank(BrightnessScorer(), "a lemon", images)] == [1, 2, 3]


def test_the_margin_is_that_of_two_thirds():
    """P(a > b) = Phi(gap / (sigma sqrt 2)) = 2/3, by drawing."""
    draws = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(0))
    assert (draws[0] + margin_of_sigmas([1.0, 1.0]) > draws[1]).float().mean() == pytest.approx(2 / 3, abs=3e-3)
    assert (margin_of_sigmas([]), margin_of_sigmas([float("nan")])) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("sigmas", "got"),
    [(torch.tensor([-1.0, 1.0]), "from 0 on, got -1.0"), (torch.zeros(3), r"got shape \(3,\)")],
)
def test_a_sigma_that_is_none_is_refused(sigmas: torch.Tensor, got: str):
    scorer = Unsure(1.0)
    scorer.score_with_sigma = lambda prompt, images: (scorer.score(prompt, images), sigmas)
    with pytest.raises(UsageError, match=f"scorer unsure: expected .* ?{got}"):
        rank(scorer, "a lemon", grays(1, 2))


def test_a_run_notes_the_margin_whatever_was_interrupted(tmp_path: Path):
    def run(folder, **more):
        scorer = Unsure(0.02)
        return generate("a lemon", pipe=SeededPipe(), scorer=scorer, out=folder, **{**SETTINGS, **more})

    whole = run(tmp_path / "whole")
    margin = json.loads((tmp_path / "whole" / "result.json").read_text())["margin"]
    assert margin == whole.summary.margin == pytest.approx(margin_of_sigmas([0.02]))
    assert len({entry.tie_group for entry in whole}) < len(whole)
    stopped = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", stop=lambda: next(stopped))
    assert run(tmp_path / "part", resume=True).summary == whole.summary


def test_nothing_usable_is_said():
    scorer = Unsure(1.0)
    scorer.score_with_sigma = lambda prompt, images: (torch.full((len(images),), torch.nan), torch.ones(len(images)))
    with pytest.raises(NothingUsableError, match="scorer unsure: expected finite scores"):
        rank(scorer, "a lemon", grays(1, 2))
