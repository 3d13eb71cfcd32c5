"""Plans: a schedule acted out is what the search does, and the cheapest one that keeps the gain is found."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from support.blurred import BlurredPipe, run
from support.loops import build_sd
from typer.testing import CliRunner

from sp_rerank.cli import app
from sp_rerank.errors import NothingUsableError, UnwatchableError, UsageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.writer import add_scores
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.search.cheapest import Fit, cheapest
from sp_rerank.search.planner import estimate, plan
from sp_rerank.search.recorded import Recording, normalized_gains, read_recording, simulate
from sp_rerank.search.schedule import Schedule, ScheduledRound, read_schedule, to_toml

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # NumPy 2 in diffusers' schedulers

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

    seen = {
        (6, 4): (like(rho - 0.2), 4), (6, None): (like(rho - 0.1), 6), (8, None): (like(rho), 8),
        (0.4, None): (like(0.6), 8), (0.7, None): (like(0.9), 14),
    }  # fmt: skip
    return Recording(f"prompt {seed}", MADE_WITH, finished, 20, seen, like(0.7), 0.8)


def schedule_of(strategy: str, *rounds) -> Schedule:
    return Schedule(strategy, tuple(ScheduledRound(*entry) for entry in rounds))


def test_evaluations_are_counted_as_they_are_spent():
    one = recording(0)
    drafts = simulate(schedule_of("screening", (6, 0.3), (8, 10)), one, 4)
    assert drafts.evaluations == 600 + 30 * 8 + 10 * 20
    assert drafts.decodes == 140
    assert len(drafts.finalists) == 10
    inside = simulate(schedule_of("screening", (6, 0.4, 4), (6, 20), (8, 0.1)), one, 4)
    assert inside.evaluations == 100 * 4 + 40 * 2 + 20 * 8 + 10 * 20, "a look inside a draft goes on in the same one"
    assert inside.decodes == 170
    left = simulate(schedule_of("screening", (6, 0.4, 4), (8, 10)), one, 4)
    assert left.evaluations == 100 * 4 + 40 * 8 + 10 * 20, "another draft begins anew"
    previews = simulate(schedule_of("halving", (0.4, 0.5), (0.7, 0.2)), one, 4)
    assert previews.evaluations == 100 * 8 + 50 * 6 + 20 * 6
    assert len(previews.finalists) == 20
    assert len(simulate(schedule_of("screening", (6, 0.01)), one, 4).finalists) == 4
    with pytest.raises(UsageError, match=r"holds no stage 5; it holds 4 of 6, 6, 8, 0\.4, 0\.7: record anew"):
        simulate(schedule_of("screening", (5, 0.3)), one, 4)
    with pytest.raises(UsageError, match="holds no stage 3 of 6"):
        simulate(schedule_of("screening", (6, 0.3, 3)), one, 4)


def halves(seed: int, n: int = 200) -> Recording:
    """Two looks that each know one half of what makes the finished score."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, n))
    seen = {(4, None): (3 * first + 7, 4), (6, None): (second - 2, 6)}
    return Recording(f"prompt {seed}", MADE_WITH, first + second, 20, seen, first, 0.8)


def test_all_scores_of_a_candidate_are_weighed_together():
    recordings = [halves(seed) for seed in range(6)]
    weights = Fit(recordings, [(4, None), (6, None)]).weights([(4, None), (6, None)])
    assert weights == pytest.approx((1 / 3, 1), abs=0.03)
    both = estimate(schedule_of("screening", (4, 0.5), (6, 4, None, weights)), recordings, 4)
    last = estimate(schedule_of("screening", (4, 0.5), (6, 4)), recordings, 4)
    assert both.gain.value > 0.99 > last.gain.value + 0.02
    found = cheapest(recordings, 4, gain=0.99, top_gain=0.97)
    assert len(found.rounds) == 2 and found.rounds[1].weights == weights and found.spacing == 0.8
    print(f"{found.rounds}: {estimate(found, recordings, 4).saving:.2f}x fewer")


def test_scores_that_are_not_finite_are_left_out_of_a_fit_or_refused():
    places = [(4, None), (6, None)]
    recordings = [halves(seed) for seed in range(3)]
    clean = Fit([*recordings, halves(3)], places).weights(places)
    recordings[0].seen[4, None][0][:100] = np.nan
    recordings[1].finished[50:] = np.nan
    assert Fit([*recordings, halves(3)], places).weights(places) == pytest.approx(clean, abs=0.05)
    for one in recordings:
        one.seen[6, None][0][15:] = np.nan
    with pytest.raises(UsageError, match=r"30 candidates .* usable scores at every stage; expected at least 60"):
        cheapest(recordings, 4, gain=0.9, top_gain=0.9)


def test_a_recording_without_the_stages_of_the_others_is_refused():
    recordings = [recording(seed) for seed in range(3)]
    del recordings[1].seen[6, 4]
    with pytest.raises(UsageError, match="recording of 'prompt 1' holds no stage 4 of 6"):
        cheapest(recordings, 4, gain=0.9, top_gain=0.9)


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
    with pytest.raises(UsageError, match=r"spacing is 0\.8 and None"):
        plan([*recordings, replace(recordings[0], prompt="odd", spacing=None)])


def test_a_recorded_run_is_planned_from_and_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("sp_rerank.search.schedule.RECORDED_PREVIEWS", ())  # the double has no steps to look into
    monkeypatch.setattr("sp_rerank.search.schedule.RECORDED_DRAFTS", (2, 3))
    monkeypatch.setattr("sp_rerank.search.schedule.RECORDED_INSIDE", {3: (2,)})  # left out for the same reason
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
    assert list(mine.seen) == [(2, None), (3, None)] and mine.spacing is None
    assert all(np.allclose(other.seen[steps, None][0], -mine.seen[steps, None][0]) for steps in (2, 3))
    command = ["plan", *map(str, folders), "--scorer", "hps", "--out", str(tmp_path / "none.toml")]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, UsageError) and "record anew with that scorer too" in str(refused.exception)
    acted = simulate(schedule, read_recording(RunDir.read(folders[0])), 4)
    run(BlurredPipe(), tmp_path / "followed", search=tmp_path / "plan.toml", prompt="a lemon 0")
    followed = RunDir.read(tmp_path / "followed").rows
    assert sorted(i for i, row in followed.items() if row.status == "ok") == sorted(acted.finalists)
    assert sum(row.nfe for row in followed.values()) == acted.evaluations


def test_looks_inside_drafts_are_recorded_and_acted_out_as_the_search_does_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sp_rerank.search.schedule.RECORDED_PREVIEWS", (0.5,))
    monkeypatch.setattr("sp_rerank.search.schedule.RECORDED_DRAFTS", (3, 4))
    monkeypatch.setattr("sp_rerank.search.schedule.RECORDED_INSIDE", {4: (2, 3)})
    monkeypatch.setattr("sp_rerank.search.schedule.DEAREST_DRAFT", 0.7)
    settings = {"n": 12, "steps": 6, "batch_size": 5, "guidance_scale": 3.0, "top_k": 2}
    run(build_sd(), tmp_path / "recorded", record=True, **settings)
    folder = RunDir.read(tmp_path / "recorded")
    assert folder.config.search.spacing == 0.8
    assert [seen.stage.label for seen in folder.rows[0].stages] == [
        "draft, 3 steps", "draft, 2 of 4 steps", "draft, 3 of 4 steps", "draft, 4 steps", "preview, 3 of 6 steps",
    ]  # fmt: skip
    one = read_recording(folder)
    assert {place: cost for place, (_, cost) in one.seen.items()} == {
        (3, None): 3, (4, 2): 2, (4, 3): 3, (4, None): 4, (0.5, None): one.seen[0.5, None][1],
    }  # fmt: skip
    schedule = Schedule(
        "screening",
        (
            ScheduledRound(3, 9),
            ScheduledRound(4, 6, 2, (2.0, -1.0)),
            ScheduledRound(4, 4, None, (-0.5, 0.1, 1.0)),
        ),
        spacing=0.8,
    )
    (tmp_path / "mixed.toml").write_text(to_toml(schedule))
    assert read_schedule(tmp_path / "mixed.toml") == schedule
    run(build_sd(), tmp_path / "followed", search=tmp_path / "mixed.toml", **settings)
    rows = RunDir.read(tmp_path / "followed").rows
    acted = simulate(schedule, one, 2)
    assert sorted(index for index, row in rows.items() if row.status == "ok") == sorted(acted.finalists)
    assert sum(row.nfe for row in rows.values()) == acted.evaluations
    assert all(row.sha256 == folder.rows[index].sha256 for index, row in rows.items() if row.status == "ok")


def test_a_recording_without_a_usable_candidate_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sp_rerank.search.recording.check_watchable", _cannot)
    with pytest.raises(NothingUsableError):
        run(BlurredPipe(flagged=range(20)), tmp_path / "run", n=20, record=True)
    with pytest.raises(UsageError, match="holds no usable candidate; leave it out"):
        read_recording(RunDir.read(tmp_path / "run"))


def _cannot(sampler):
    raise UnwatchableError("it cannot be cut")


def test_finalists_that_are_not_usable_gain_nothing():
    one = recording(3)
    one.finished[:10] = np.nan
    assert normalized_gains(one, range(10), 4) == (0.0, 0.0, 0.0, 0.0)
    assert estimate(schedule_of("screening", (6, 0.1)), [one], 4).prompts == 1


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
