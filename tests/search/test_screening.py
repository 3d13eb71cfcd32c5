"""Screening: drafts choose who is finished; what is dropped, resumed, stopped and replayed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.blurred import SETTINGS, BlurredPipe, run
from support.doubles import SeededPipe
from support.loops import build_sd
from support.runs import files_of

from sp_rerank.config import Round, SearchPlan
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.errors import NothingUsableError, SpRerankError, UsageError
from sp_rerank.generate import generate
from sp_rerank.replay import Replays
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.search.schedule import RunShape, Schedule, ScheduledRound, plan_for, read_schedule, strategy_of, to_toml
from sp_rerank.search.screening import completed, screening

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # NumPy 2 in diffusers' schedulers

SCHEDULE = 'strategy = "screening"\nrounds = [{steps = 2, keep = 16}, {steps = 3, keep = 6}]\n'


@pytest.fixture
def schedule(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(SCHEDULE)
    return path


def test_the_finalists_are_those_of_the_drafts_and_made_as_ever(tmp_path, schedule):
    full = run(BlurredPipe(), tmp_path / "full")
    best = run(BlurredPipe(), tmp_path / "fast", search=schedule)
    all_rows, rows = (RunDir.read(tmp_path / name).rows for name in ("full", "fast"))
    assert RunDir.read(tmp_path / "fast").verify() == []
    statuses = [row.status for row in rows.values()]
    assert len(rows) == 40
    assert statuses.count("ok") == 6
    assert statuses.count("dropped") == 34
    finished = [row for row in rows.values() if row.status == "ok"]
    assert all(row.sha256 == all_rows[row.index].sha256 for row in finished)
    assert [seen.stage.label for seen in finished[0].stages] == ["draft, 2 steps", "draft, 3 steps"]
    assert {row.nfe for row in finished} == {2 + 3 + 5}
    spent = sum(row.nfe for row in rows.values())
    assert spent == 40 * 2 + 16 * 3 + 6 * 5
    first = {row.index: row.stages[0].score for row in rows.values()}
    second = {row.index: row.stages[1].score for row in rows.values() if len(row.stages) == 2}
    assert sorted(second) == sorted(sorted(first, key=lambda i: -first[i])[:16])
    assert sorted(row.index for row in finished) == sorted(sorted(second, key=lambda i: -second[i])[:6])
    assert [r.score for r in best] == sorted((row.scores["brightness"] for row in finished), reverse=True)[:4]
    assert not (tmp_path / "fast" / "drafts").exists() and not (tmp_path / "fast" / "stages.jsonl").exists()
    print(f"screening: {spent} of 200 evaluations; the pick is {best[0].score:.4f} of {full[0].score:.4f}")


@pytest.mark.parametrize("after", [1, 5, 6, 7])
def test_stopped_between_stages_and_resumed(tmp_path, schedule, after):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == after

    scored = []

    class Counting(BrightnessScorer):
        def score(self, prompt, images):
            scored.append(len(images))
            return super().score(prompt, images)

    def go(folder, **arguments):
        return generate(
            "a lemon", pipe=BlurredPipe(), scorer=Counting(), out=folder, search=schedule, **SETTINGS, **arguments
        )

    go(tmp_path / "whole")
    at_once, scored[:] = sum(scored), []
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", stop=stop)
    with pytest.raises(UsageError, match="resume it"):
        go(tmp_path / "run")
    go(tmp_path / "run", resume=True)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    assert sum(scored) == at_once == 40 + 16 + 6, "nothing is scored twice"


def test_a_complete_run_is_left_alone_and_a_lost_image_is_made_again(tmp_path, schedule):
    run(BlurredPipe(), tmp_path / "run", search=schedule)
    before = files_of(tmp_path / "run")
    pipe = BlurredPipe()
    run(pipe, tmp_path / "run", search=schedule)
    assert not pipe.made and files_of(tmp_path / "run") == before
    (tmp_path / "run" / "images" / "00000.png").unlink()
    run(pipe, tmp_path / "run", search=schedule, resume=True)
    assert pipe.made and files_of(tmp_path / "run") == before


def test_a_broken_draft_is_dropped(schedule):
    def spoil(seeds, images):
        images[[seed == 5 for seed in seeds]] = math.nan

    best = run(BlurredPipe(spoil), search=schedule)
    assert 5 not in [entry.candidate.index for entry in best]


def test_a_flagged_draft_never_goes_on(tmp_path, schedule):
    class Darkness(BrightnessScorer):
        name = "darkness"

        def score(self, prompt, images):
            return -super().score(prompt, images)

    best = generate(
        "a lemon",
        pipe=BlurredPipe(flagged=range(6)),
        scorer=Darkness(),
        search=schedule,
        out=tmp_path / "run",
        **SETTINGS,
    )
    assert len(best) == 4 and all(r.candidate.index >= 6 for r in best)
    rows = RunDir.read(tmp_path / "run").rows
    assert all(rows[i].stages[0].flagged and rows[i].stages[0].score is None for i in range(6))


def test_mostly_broken_drafts_are_the_precisions_fault(tmp_path, schedule):
    def spoil(seeds, images):
        images[[seed % 2 == 0 for seed in seeds]] = math.nan

    with pytest.raises(NothingUsableError, match="20 of 40 images or scores are not finite"):
        run(BlurredPipe(spoil), tmp_path / "run", search=schedule)

    def spoil_one(seeds, images):
        if len(seeds) < 8:  # the finalists
            images[0] = math.nan

    assert len(run(BlurredPipe(spoil_one), search=schedule)) == 4, "one of forty is no pattern"


def test_a_damaged_draft_is_made_again(tmp_path, schedule):
    run(BlurredPipe(), tmp_path / "whole", search=schedule)
    asked = []
    with pytest.raises(KeyboardInterrupt):
        run(BlurredPipe(), tmp_path / "run", search=schedule, stop=lambda: asked.append(1) or len(asked) == 6)
    drafts = sorted((tmp_path / "run" / "drafts").iterdir())
    drafts[0].unlink()
    drafts[7].write_bytes(b"rubbish")
    run(BlurredPipe(), tmp_path / "run", search=schedule, resume=True)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_a_scorer_that_fails_is_named_and_nothing_is_lost(tmp_path, schedule):
    class Failing(BrightnessScorer):
        calls = 0

        def score(self, prompt, images):
            self.calls += 1
            if self.calls == 4:
                raise KeyError("a plug-in's own mistake")
            return super().score(prompt, images)

    with pytest.raises(SpRerankError, match=r"brightness failed: KeyError"):
        generate("a lemon", pipe=BlurredPipe(), scorer=Failing(), search=schedule, out=tmp_path / "run", **SETTINGS)
    run(BlurredPipe(), tmp_path / "whole", search=schedule)
    run(BlurredPipe(), tmp_path / "run", search=schedule, resume=True)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_the_sheet_shows_the_chosen_ones(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "sp_rerank.report.contact_sheet._put", lambda sheet, run, index, corner, side: drawn.append((index, side))
    )

    class Embedding(BrightnessScorer):
        def embed(self, images):
            return torch.stack([torch.from_numpy(np.asarray(image, float)).flatten() for image in images])

    best = generate("a lemon", pipe=SeededPipe(), scorer=Embedding(), diverse=True, out=tmp_path / "run", **SETTINGS)
    largest = max(side for _, side in drawn)
    assert [index for index, side in drawn if side == largest] == [r.candidate.index for r in best]


def test_a_scheduler_that_draws_noise_is_warned_of(schedule, caplog):
    pipe = BlurredPipe()
    pipe.scheduler = type("EulerAncestralDiscreteScheduler", (), {})()
    run(pipe, search=schedule)
    assert "draws noise at every step" in caplog.text


def test_a_stage_must_keep_enough(schedule):
    with pytest.raises(UsageError, match="keeps 6 of 40 candidates; expected from 7 to 40"):
        run(BlurredPipe(), search=schedule, top_k=7)
    sampler = Sampler(BlurredPipe(), "a lemon", batch_size=8, guidance_scale=1.0)
    with pytest.raises(UsageError, match="stage 2 of the search keeps 9 of 8"):
        list(screening([Round(2, 8), Round(3, 9)])(sampler, None, dict.fromkeys(range(20), 0), top_k=1, prior={}))


def test_a_dropped_candidate_is_replayed_whole(tmp_path, schedule):
    run(BlurredPipe(), tmp_path / "run", search=schedule)
    folder = RunDir.read(tmp_path / "run")
    dropped = next(row.index for row in folder.rows.values() if row.status == "dropped")
    finished = next(row.index for row in folder.rows.values() if row.status == "ok")
    assert Replays(folder, BlurredPipe()).write(dropped, tmp_path / "a.png") is None
    assert Replays(folder, BlurredPipe()).write(finished, tmp_path / "b.png") is True


RUN = RunShape(n=100, top_k=4, steps=20, model="mini", scorer="clip-mini@abc")


def test_a_schedule_is_for_the_run_that_it_was_made_for(tmp_path):
    path = tmp_path / "plan.toml"
    made_for = {key: getattr(RUN, key) for key in ("n", "steps", "model", "scorer")}
    path.write_text(SCHEDULE)
    text = to_toml(Schedule("screening", (ScheduledRound(8, 12),), made_for), ["a remark"])
    path.write_text(text)
    assert plan_for(path, RUN) == SearchPlan(strategy="screening", rounds=(Round(8, 12),))
    halved = Schedule("halving", (ScheduledRound(0.4, 0.5), ScheduledRound(0.6, 12, None, (0.25, 1.0))), {})
    (tmp_path / "halving.toml").write_text(to_toml(halved))
    assert read_schedule(tmp_path / "halving.toml") == halved
    for key, other in (("n", 50), ("steps", 16), ("model", "sd-v1.4"), ("scorer", "hps-v2.1@def")):
        with pytest.raises(UsageError, match=rf"made for {key} .*plan again"):
            plan_for(path, replace(RUN, **{key: other}))


def test_a_share_is_rounded_up_and_not_by_the_error_of_a_float(tmp_path):
    path = tmp_path / "plan.toml"
    for keep, kept in ((0.07, 7), (0.14, 14), (0.55, 55), (0.071, 8), (0.01, 4)):
        path.write_text(to_toml(Schedule("screening", (ScheduledRound(8, keep),))))
        assert plan_for(path, RUN).rounds == (Round(8, kept),)


def test_the_fast_schedule_fits_any_run(caplog):
    for n, top_k, steps in ((100, 4, 20), (10, 4, 50), (1000, 1, 50)):
        plan = plan_for("fast", replace(RUN, n=n, top_k=top_k, steps=steps))
        strategy_of(plan)
        assert all(top_k <= entry.keep < n and entry.at < steps for entry in plan.rounds)
    assert plan_for("fast", replace(RUN, n=4)) == SearchPlan()
    assert "spares nothing of 4 candidates" in caplog.text
    assert SearchPlan.from_json(json.loads(json.dumps(plan_for("fast", RUN).to_json()))) == plan_for("fast", RUN)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("strategy = 'screening'", "there are no rounds"),
        ("strategy = 'magic'", "expected one of screening, halving"),
        ("rounds = 1", "strategy is None"),
        ("strategy = 'screening'\nrounds = [{steps = 0, keep = 3}]", "steps is 0"),
        ("strategy = 'screening'\nrounds = [{steps = 4, keep = 1.5}]", "keep is 1.5"),
        ("strategy = 'screening'\nrounds = [{steps = 4}]", "keep"),
        ("strategy = 'screening'\nspeed = 9", "unknown key 'speed'"),
        ("strategy = 'screening'\nrounds = [{steps = 4, keep = 9}]\nmade_for = {dtype = 'x'}", "unknown key 'dtype'"),
        ("strategy = 'screening'\nmade_for = 3", "made_for is no table"),
        ("strategy = 'screening'\nrounds = [{steps = 4, keep = 9}, {steps = 3, keep = 5}]", "expected rising ones"),
        ("strategy = 'screening'\nrounds = [{steps = 4, keep = 5}, {steps = 6, keep = 9}]", "expected falling numbers"),
        ("strategy = 'screening'\nbuckets = [4]", "unknown key 'buckets'"),
        (
            "strategy = 'screening'\nspacing = 0\nrounds = [{steps = 4, keep = 9}]",
            "spacing is 0, expected",
        ),
        ("strategy = 'screening'\nspacing = 'x'\nrounds = [{steps = 4, keep = 9}]", "spacing is 'x'"),
        ("strategy = 'halving'\nspacing = 0.8\nrounds = [{share = 0.4, keep = 9}]", "for screening alone"),
        (
            "strategy = 'screening'\nrounds = [{steps = 4, after = 4, keep = 9}]",
            "after is 4, expected fewer steps than",
        ),
        ("strategy = 'screening'\nrounds = [{steps = 4, after = 0, keep = 9}]", "after is 0"),
        ("strategy = 'halving'\nrounds = [{share = 0.4, after = 1, keep = 9}]", "unknown key 'after' in a round"),
        ("strategy = 'screening'\nrounds = [{steps = 4, keep = 9, weights = [1, 2]}]", "expected 1 numbers"),
        ("strategy = 'screening'\nrounds = [{steps = 4, keep = 9, weights = [nan]}]", "weights is"),
        (
            "strategy = 'screening'\nrounds = [{steps = 6, keep = 9}, {steps = 6, after = 4, keep = 5}]",
            "steps are 6, 6 after 4, expected rising ones",
        ),
        ("not toml", "is no schedule"),
    ],
)
def test_a_bad_schedule_is_refused(tmp_path, text, complaint):
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        plan_for(tmp_path / "plan.toml", RUN)


INSIDE = """strategy = "screening"
spacing = 0.8
rounds = [
    {steps = 3, keep = 10},
    {steps = 4, after = 2, keep = 7, weights = [0.5, 1.0]},
    {steps = 4, keep = 4, weights = [0.0, 0.3, 0.7]},
]
"""
SMALL = {"n": 13, "batch_size": 5, "guidance_scale": 3.0, "steps": 6, "top_k": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three rounds, one of them inside a draft, and how many images were scored."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "plan.toml").write_text(INSIDE)
    scorer = Counting()
    generate("a lemon", pipe=build_sd(), scorer=scorer, out=folder / "run", search=folder / "plan.toml", **SMALL)
    assert scorer.images == 13 + 10 + 7 + 4
    return folder


class Counting(BrightnessScorer):
    """Knows how many images it has scored."""

    images = 0

    def score(self, prompt, images):
        self.images += len(images)
        return super().score(prompt, images)


def test_drafts_are_cut_on_their_way_and_begin_where_the_run_begins(whole):
    rows = RunDir.read(whole / "run").rows
    assert RunDir.read(whole / "run").config.search.spacing == 0.8
    finished = [row for row in rows.values() if row.status == "ok"]
    assert [[(seen.stage.label, seen.nfe) for seen in row.stages] for row in finished] == [
        [("draft, 3 steps", 3), ("draft, 2 of 4 steps", 2), ("draft, 4 steps", 2)]
    ] * 4
    assert sum(row.nfe for row in rows.values()) == 13 * 3 + 10 * 2 + 7 * 2 + 4 * 7, "PNDM's 6 steps are 7 calls"
    first, second, third = (
        {index: row.stages[look].score for index, row in rows.items() if len(row.stages) > look} for look in range(3)
    )
    weighed = {index: 0.3 * second[index] + 0.7 * score for index, score in third.items()}
    assert {row.index for row in finished} == set(sorted(weighed, key=lambda index: -weighed[index])[:4])
    half = {index: 0.5 * first[index] + score for index, score in second.items()}
    assert set(third) == set(sorted(half, key=lambda index: -half[index])[:7])


@pytest.mark.parametrize("after", range(1, 8))
def test_a_search_stopped_between_and_inside_rounds_goes_on_there(tmp_path, whole, after):
    asked, scorer = [], Counting()

    def go(**arguments):
        generate(
            "a lemon", pipe=build_sd(), scorer=scorer, out=tmp_path / "run", search=whole / "plan.toml", **SMALL,
            **arguments,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        go(stop=lambda: asked.append(1) or len(asked) == after)
    go(resume=True)
    assert files_of(tmp_path / "run") == files_of(whole / "run")
    assert scorer.images == 13 + 10 + 7 + 4, "nothing is scored twice, nothing is left out"


def test_a_pipeline_that_cannot_be_looked_into_makes_each_draft_to_its_end(tmp_path, caplog):
    inside = INSIDE.replace("spacing = 0.8\n", "")
    (tmp_path / "plan.toml").write_text(inside)
    run(BlurredPipe(), tmp_path / "run", search=tmp_path / "plan.toml", n=13, top_k=2)
    assert "every draft is made to its end: BlurredPipe has no callback_on_step_end" in caplog.text
    assert "take screening" not in caplog.text and len(caplog.text.splitlines()) == 1
    rows = RunDir.read(tmp_path / "run").rows.values()
    assert sorted([seen.stage.label for seen in row.stages] for row in rows) == (
        [["draft, 3 steps"]] * 3 + [["draft, 3 steps", "draft, 4 steps"]] * 10
    )
    assert sum(row.status == "ok" for row in rows) == 4
    assert completed([Round(6, 20, 4), Round(8, 9, 2, (0.1, 1.0)), Round(8, 5, 4, (0.1, 0.2, 1.0))]) == (
        Round(6, 20), Round(8, 5, None, (0.1, 1.0)),
    )  # fmt: skip


def test_a_compiled_pipeline_is_not_cut_inside_a_draft(tmp_path):
    (tmp_path / "plan.toml").write_text(INSIDE)
    pipe, rows = build_sd(), set()
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *args, **more: (rows.add(len(args[0])), forward(*args, **more))[1]
    pipe.unet.compile(backend="eager")
    out = tmp_path / "run"
    generate("a lemon", pipe=pipe, scorer=Counting(), out=out, search=tmp_path / "plan.toml", **SMALL)
    labels = {tuple(seen.stage.label for seen in row.stages) for row in RunDir.read(out).rows.values()}
    assert labels == {("draft, 3 steps",), ("draft, 3 steps", "draft, 4 steps")}
    assert rows == {10}, "five images with guidance at each call, so that nothing is compiled twice"


def test_a_pipeline_without_time_steps_is_told_so_and_fast_has_a_schedule_for_it(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('strategy = "screening"\nspacing = 0.8\nrounds = [{steps = 3, keep = 6}]\n')
    with pytest.raises(UsageError, match="takes neither timesteps nor sigmas; take the search 'fast'") as caught:
        run(BlurredPipe(), tmp_path / "run", search=path)
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()
    run(BlurredPipe(), tmp_path / "fast", search="fast", steps=10)
    search = RunDir.read(tmp_path / "fast").config.search
    assert search == SearchPlan(strategy="screening", rounds=(Round(8, 4),)) and search.spacing is None
