"""When a run ends early: the rules, and that the probability is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.doubles import SeededPipe

from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.generate import generate
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.stats.stopping import confidence


def run(folder=None, **arguments):
    arguments = {"n": 40, "batch_size": 5, "guidance_scale": 1.0, "steps": 5, **arguments}
    return generate("a lemon", pipe=SeededPipe(), scorer=BrightnessScorer(), out=folder, **arguments)


def test_without_a_margin_the_probability_is_the_share_that_is_made():
    rng = np.random.default_rng(0)
    held = [scores.argmax() < 30 for scores in rng.gamma(1.0, size=(4000, 40))]
    assert confidence(list(rng.normal(size=30)), 40, 0.0) == 0.75
    assert np.mean(held) == pytest.approx(0.75, abs=0.02)


def test_with_a_margin_the_probability_is_about_right_for_normal_scores_and_errs_to_the_low_side():
    rng = np.random.default_rng(1)
    claims, held = [], []
    for scores in rng.normal(size=(2000, 40)):
        claims.append(confidence(list(scores[:20]), 40, 0.5))
        held.append(scores[20:].max() <= scores[:20].max() + 0.5)
    print(f"claimed {np.mean(claims):.3f}, held {np.mean(held):.3f}")
    assert np.mean(held) - 0.05 < np.mean(claims) < np.mean(held) + 0.01


@pytest.mark.parametrize(
    ("scores", "n", "margin", "expected"),
    [
        ([], 10, 0.1, 0.0),
        ([math.nan, math.nan], 10, 0.1, 0.0),
        ([math.nan, math.nan], 2, 0.1, 1.0),
        ([1.0], 10, 0.1, 0.1),
        ([1.0] * 6, 10, 0.1, 1.0),
        ([1.0, 2.0], 2, 0.0, 1.0),
    ],
)
def test_edges(scores, n, margin, expected):
    assert confidence(scores, n, margin) == expected


def test_a_run_ends_when_it_is_sure(tmp_path):
    best = run(tmp_path / "run", confidence=0.6)
    folder = RunDir.read(tmp_path / "run")
    assert len(folder.rows) == 25 and folder.verify() == []
    again = run(tmp_path / "run", confidence=0.6, resume=True)
    assert list(best) == list(again), "it is over, and stays so"
    assert best.ended == again.ended == folder.result.ended
    assert best.ended.by == "confidence"
    assert [r.candidate.seed for r in best] == [r.candidate.seed for r in run(n=25)]


def test_a_run_ends_before_it_spends_more(tmp_path):
    run(tmp_path / "run", max_evaluations=60)
    spent = sum(row.nfe for row in RunDir.read(tmp_path / "run").rows.values())
    assert spent == 50
    run(tmp_path / "time", max_seconds=1e-9)
    assert len(RunDir.read(tmp_path / "time").rows) == 5


def test_the_last_batch_may_be_smaller_and_a_batch_is_cut_to_the_budget(tmp_path):
    run(tmp_path / "all", n=8, batch_size=5, max_evaluations=40)
    assert len(RunDir.read(tmp_path / "all").rows) == 8
    run(tmp_path / "few", max_evaluations=12, top_k=1)
    assert sum(row.nfe for row in RunDir.read(tmp_path / "few").rows.values()) == 10
    with pytest.raises(UsageError, match="expected at least 5, for one candidate"):
        run(max_evaluations=4)


def test_wrong_rules_are_refused():
    for probability in (0.0, 1.0, 1.5, math.nan, "p>0.9"):
        with pytest.raises(UsageError, match=r"confidence is .*; expected a probability between 0 and 1"):
            run(confidence=probability)
    with pytest.raises(UsageError, match="expected a number above 0"):
        run(max_seconds=0.0)
    with pytest.raises(UsageError, match="only an exhaustive search without a recording ends early"):
        run(confidence=0.9, search="fast")


def test_nothing_usable_is_said_also_of_a_run_that_ended_early():
    def spoil(seeds, images):
        images[:] = math.nan

    with pytest.raises(NothingUsableError):
        generate(
            "a lemon", pipe=SeededPipe(spoil), scorer=BrightnessScorer(), n=20, batch_size=5, guidance_scale=1.0,
            max_evaluations=30,
        )  # fmt: skip
