"""Plans: a schedule acted out is what the search does, and the cheapest one that keeps the gain is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.blurred import BlurredPipe, run
from typer.testing import CliRunner

from sp_rerank.cli import app
from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.writer import add_scores
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.search.planner import Recording, cheapest, estimate, normalized_gains, plan, read_recording, simulate
from sp_rerank.search.schedule import Schedule, read_schedule

MADE_WITH = {"n": 100, "steps": 20, "model": "mini", "scorer": "s@1"}


class Darkness(BrightnessScorer):
    """The opposite of brightness."""

    name = "darkness"

    def score(self, prompts, images):
        return -super().score(prompts, images)


def recording(seed: int, rho: float = 0.95) -> Recording:
    rng = np.random.default_rng(seed)
    finished = rng.normal(size=100)

    def like(rho):
        return rho * finished + np.sqrt(1 - rho**2) * rng.normal(size=100)

    drafts = {6: (like(rho - 0.1), 6), 8: (like(rho), 8)}
    previews = {0.4: (like(0.6), 8), 0.7: (like(0.9), 14)}
    return Recording(f"prompt {seed}", MADE_WITH, finished, 20, drafts, previews, like(0.7))


def test_evaluations_are_counted_as_they_are_spent():
    one = recording(0)
    drafts = simulate(Schedule("screening", ((6, 0.3), (8, 10))), one, 4)
    assert drafts.evaluations == 600 + 30 * 8 + 10 * 20
    assert drafts.decodes == 140
    assert len(drafts.finalists) == 10
    previews = simulate(Schedule("halving", ((0.4, 0.5), (0.7, 0.2))), one, 4)
    assert previews.evaluations == 100 * 8 + 50 * 6 + 20 * 6
    assert len(previews.finalists) == 20
    assert len(simulate(Schedule("screening", ((6, 0.01),)), one, 4).finalists) == 4
    with pytest.raises(UsageError, match="holds no stage 5"):
        simulate(Schedule("screening", ((5, 0.3),)), one, 4)


def test_gain_is_the_share_of_the_way_to_the_best():
    one = recording(1)
    order = np.argsort(-one.finished)
    assert normalized_gains(one, range(100), 4) == (1.0, 1.0, 1.0, 1.0)
    gain, top_gain, same, overlap = normalized_gains(one, [int(i) for i in order[1:5]], 4)
    way = one.finished[order[0]] - one.finished.mean()
    assert gain == pytest.approx((one.finished[order[1]] - one.finished.mean()) / way)
    best, kept = one.finished[order[:4]].mean(), one.finished[order[1:5]].mean()
    assert top_gain == pytest.approx((kept - one.finished.mean()) / (best - one.finished.mean()))
    assert (same, overlap) == (0.0, 0.75)


def test_the_cheapest_schedule_keeps_the_gain_and_no_cheaper_one_does():
    recordings = [recording(seed) for seed in range(6)]
    found = cheapest(recordings, 4, gain=0.99, top_gain=0.97)
    kept = estimate(found, recordings, 4)
    assert kept.gain.value >= 0.99 and kept.top_gain.value >= 0.97
    dearer = estimate(cheapest(recordings, 4, gain=0.999, top_gain=0.99), recordings, 4)
    assert dearer.saving <= kept.saving
    print(f"{found.strategy} {found.rounds}: {kept.saving:.2f}x fewer at {kept.gain.value:.3f}")


def test_a_plan_is_reported_on_prompts_that_did_not_choose_it():
    recordings = [recording(seed) for seed in range(10)]
    schedule, kept = plan(recordings, gain=0.95, top_gain=0.9)
    assert kept.prompts == 5 and schedule.made_for == MADE_WITH
    with pytest.raises(UsageError, match="at least 4 different prompts, got 3"):
        plan(recordings[:3])
    other = Recording("odd", {**MADE_WITH, "steps": 30}, *[getattr(recordings[0], f) for f in Recording.__slots__[2:]])
    with pytest.raises(UsageError, match="steps is 20 and 30"):
        plan([*recordings, other])


def test_a_recorded_run_is_planned_from_and_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("sp_rerank.search.schedule.RECORDED_PREVIEWS", ())  # the double has no steps to look into
    monkeypatch.setattr("sp_rerank.search.schedule.RECORDED_DRAFTS", (2, 3))
    monkeypatch.setattr("sp_rerank.search.schedule.DEAREST_DRAFT", 0.6)
    monkeypatch.setattr("sp_rerank.search.recording.check_watchable", _cannot)
    folders = [tmp_path / f"run{i}" for i in range(4)]
    for i, folder in enumerate(folders):
        run(BlurredPipe(), folder, record=True, seed=1000 * i, prompt=f"a lemon {i}", also=[Darkness()])
    rows = RunDir.read(folders[0]).rows
    assert {row.status for row in rows.values()} == {"ok"} and {row.nfe for row in rows.values()} == {10}
    result = CliRunner().invoke(
        app, ["plan", *map(str, folders), "--gain", "0.9", "--top-gain", "0.8", "--out", str(tmp_path / "plan.toml")]
    )
    assert result.exit_code == 0, result.output
    schedule = read_schedule(tmp_path / "plan.toml")
    assert schedule.strategy == "screening" and schedule.made_for["n"] == 40
    # the other scorer saw the same stages, and its best are the worst of the first
    mine, other = (read_recording(RunDir.read(folders[0]), scorer=name) for name in (None, "darkness"))
    assert np.allclose(other.finished, -mine.finished) and other.made_with["scorer"] == "darkness"
    assert all(np.allclose(other.drafts[steps][0], -mine.drafts[steps][0]) for steps in (2, 3))
    command = ["plan", *map(str, folders), "--scorer", "hps", "--out", str(tmp_path / "none.toml")]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, UsageError) and "record anew with that scorer too" in str(refused.exception)
    acted = simulate(schedule, read_recording(RunDir.read(folders[0])), 4)
    run(BlurredPipe(), tmp_path / "followed", search=tmp_path / "plan.toml", prompt="a lemon 0")
    followed = RunDir.read(tmp_path / "followed").rows
    assert sorted(i for i, row in followed.items() if row.status == "ok") == sorted(acted.finalists)
    assert sum(row.nfe for row in followed.values()) == acted.evaluations


def test_a_recording_without_a_usable_candidate_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sp_rerank.search.recording.check_watchable", _cannot)
    with pytest.raises(NothingUsableError):
        run(BlurredPipe(flagged=range(20)), tmp_path / "run", n=20, record=True)
    with pytest.raises(UsageError, match="holds no usable candidate; leave it out"):
        read_recording(RunDir.read(tmp_path / "run"))


def _cannot(sampler):
    raise UsageError("it cannot be cut")


def test_finalists_that_are_not_usable_gain_nothing():
    one = recording(3)
    one.finished[:10] = np.nan
    assert normalized_gains(one, range(10), 4) == (0.0, 0.0, 0.0, 0.0)
    assert estimate(Schedule("screening", ((6, 0.1),)), [one], 4).prompts == 1


def test_what_is_no_recording_is_refused(tmp_path):
    run(BlurredPipe(), tmp_path / "run", n=20)
    with pytest.raises(UsageError, match="no recording; make one with"):
        read_recording(RunDir.read(tmp_path / "run"))


def test_scores_are_added_to_a_run_and_nothing_else(tmp_path):
    run(BlurredPipe(), tmp_path / "run", n=20)
    before = RunDir.read(tmp_path / "run")
    add_scores(tmp_path / "run", {"other@1": {0: 0.5, 3: float("nan")}})
    after = RunDir.read(tmp_path / "run")
    assert after.rows[0].scores["other@1"] == 0.5 and after.rows[3].scores["other@1"] is None
    assert "other@1" not in after.rows[1].scores and after.config == before.config and after.verify() == []
    with pytest.raises(UsageError, match="holds no candidate 20"):
        add_scores(tmp_path / "run", {"other@1": {20: 0.5}})


def test_other_scorers_are_kept_beside_and_choose_nothing(tmp_path):
    class Darkness(BrightnessScorer):
        name = "darkness"

        def score(self, prompt, images):
            return -super().score(prompt, images)

    alone = run(BlurredPipe(), n=20)
    both = run(BlurredPipe(), tmp_path / "run", n=20, also=[Darkness()])
    assert [r.candidate.seed for r in alone] == [r.candidate.seed for r in both]
    folder = RunDir.read(tmp_path / "run")
    assert folder.config.scorers == ("brightness", "darkness")
    assert all(row.scores["darkness"] == -row.scores["brightness"] for row in folder.rows.values())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["scorers"][0] == "brightness"
    with pytest.raises(UsageError, match="also is 'brightness'; expected other scorers"):
        run(BlurredPipe(), n=20, also=[BrightnessScorer()])
