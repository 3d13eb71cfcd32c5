"""Runs by several scorers: the figures by hand, images read once, and what is broken named and left out."""

import io
import json
import math
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import typer
from PIL import Image, ImageOps
from support.runs import row_of, run_config
from typer.testing import CliRunner

from sp_rerank.cli.compare import compare as command
from sp_rerank.compare import tables as report
from sp_rerank.compare.compare import compare
from sp_rerank.errors import NothingUsableError, StorageError, UsageError
from sp_rerank.report.tables import to_json
from sp_rerank.run.folder import RunDir
from sp_rerank.run.writer import RunWriter
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.calibration import ScorerCalibration
from sp_rerank.stats import agreement, best_of_n
from sp_rerank.storage import images, perturbation

COMPARE = sys.modules[compare.__module__]  # `sp_rerank.compare` is the function: dotted names do not lead there
APP = typer.Typer()
APP.command("compare")(command)


def png(level, side=8):
    """Gray, with a light corner at the left: mirroring and cropping change it."""
    pixels = np.full((side, side, 3), level, np.uint8)
    pixels[0, 0] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make(folder, scores, *, prompt="a lemon", levels=None, statuses=(), n=None, **config):
    """A run whose candidate i is as light as `levels` say, and holds the scores."""
    count = len(next(iter(scores.values()))) if scores else len(levels)
    levels = levels or [10 * i for i in range(count)]
    described = run_config(n or count, **{"prompt": prompt, "scorers": tuple(scores), **config})
    with RunWriter.start(folder, described) as run:
        for i in range(count):
            status = dict(statuses).get(i, "ok")
            column = {name: None if math.isnan(of[i]) else float(of[i]) for name, of in scores.items()}
            row = row_of(png(levels[i]), i, status=status, nfe=1, batch_size=1, scores=column)
            run.commit([(row, png(levels[i]))])
    return RunDir.read(folder)


@dataclass
class Corner:
    """The upper left pixel, which mirroring moves away; counts what it is asked."""

    name: str = "corner"
    fails: tuple[int, ...] = ()
    asked: list[int] = field(default_factory=list)

    def score(self, prompt, pictures):
        self.asked.append(len(pictures))
        values = [np.asarray(picture)[0, 0, 0] / 255 + np.asarray(picture)[1, 1, 0] / 2550 for picture in pictures]
        levels = [int(np.asarray(picture)[1, 1, 0]) for picture in pictures]
        if any(level in self.fails for level in levels):
            raise RuntimeError("too dark for me")
        return torch.tensor(values)


A, B, C = [0.1, 0.4, 0.3, 0.2, 0.0], [5.0, 1.0, 4.0, 3.0, 2.0], [1.0, 1.0, 2.0, 0.0, 0.0]


def test_one_run_by_hand(tmp_path):
    found = compare([make(tmp_path / "run", {"a@1": A, "b@1": B, "c@1": C})])
    (run,) = found.runs
    a, b, c = run.views
    assert [view.order for view in run.views] == [(1, 2, 3, 0, 4), (0, 2, 3, 4, 1), (2, 0, 1, 3, 4)]
    assert [view.order[0] for view in run.views] == [1, 0, 2]
    assert a.rank_by == {"a@1": 1, "b@1": 5, "c@1": 3}
    assert b.rank_by == {"a@1": 4, "b@1": 1, "c@1": 2}
    assert run.ensemble[0] == 2  # second, second and first
    assert run.seeds == {i: 40 + i for i in range(5)}
    assert (a.normalized_gain["a@1"], a.normalized_gain["b@1"]) == (
        1,
        pytest.approx(-1),
    )  # from 3 to 1, where 5 is the best
    assert a.best_of_n["b@1"] == pytest.approx(best_of_n.expected_best(A, B).tolist())
    assert c.n_for_gain == best_of_n.n_for_gain(best_of_n.expected_best(C))
    pair = run.pairs[0]
    assert pair.scorers == ("a@1", "b@1")
    assert pair.kendall == agreement.kendall_interval(A, B)
    assert pair.spearman == agreement.spearman(A, B)
    assert pair.overlap == {1: 0.0, 4: 0.75}  # there are no ten
    assert run.problems == ()
    assert (found.pairs, found.robustness, found.prompts) == ((), (), 1)
    assert all(view.tie_groups is None and view.tied_first is None for view in run.views)


def test_scales_do_not_matter(tmp_path):
    plain = compare([make(tmp_path / "one", {"a@1": A, "b@1": B})]).runs[0]
    scaled = compare([make(tmp_path / "two", {"a@1": [1000 * s - 7 for s in A], "b@1": B})]).runs[0]
    for view, other in zip(plain.views, scaled.views, strict=True):
        assert (view.order, view.rank_by, view.n_for_gain) == (other.order, other.rank_by, other.n_for_gain)
        assert view.normalized_gain == pytest.approx(other.normalized_gain)
    assert plain.pairs == scaled.pairs
    assert plain.ensemble == scaled.ensemble


def test_averages_are_of_prompts_and_never_pooled(tmp_path):
    # Two runs of one prompt that agree, one run of another that disagrees. Pooled, the shift of b would dominate.
    up, down = [0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]
    runs = [
        make(tmp_path / "1", {"a": up, "b": up}),
        make(tmp_path / "2", {"a": up, "b": [9 + s for s in up]}),
        make(tmp_path / "3", {"b": [100 + s for s in down], "a": up}, prompt="a cat"),  # in another order
    ]
    found = compare(runs)
    (mean,) = found.pairs
    assert (mean.scorers, found.prompts, found.scorers) == (("a", "b"), 2, ("a", "b"))
    assert (mean.kendall.value, mean.kendall.n) == (0, 2)
    assert mean.overlap[1].value == 0.5
    assert mean.overlap[4].value == 1
    assert math.isnan(mean.overlap[10].value)
    assert [estimate.value for estimate in mean.rank_by] == [2.5, 2.5]
    assert [estimate.value for estimate in mean.normalized_gain] == [0, 0]
    assert compare([runs[0], runs[2]]).pairs[0].kendall == mean.kendall


def test_fresh_scores_are_taken_once_and_kept(tmp_path, monkeypatch):
    run = make(tmp_path / "run", {"a": [float(i) for i in range(40)]}, levels=[5 * i for i in range(40)])
    decoded, read_bytes = [], []
    real, path_bytes = images.read_image, Path.read_bytes
    monkeypatch.setattr(images, "read_image", lambda source, name: (decoded.append(name), real(source, name))[1])
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read_bytes.append(path), path_bytes(path))[1])
    corner, brightness, done = Corner(), BrightnessScorer(), []
    found = compare([run], [corner, brightness], steady=True, progress=done.append)
    of_images = [path for path in read_bytes if path.parent.name == "images"]
    assert len(decoded) == len(set(decoded)) == len(of_images) == 40
    assert done[-1] == 40
    kept = RunDir.read(run.path)
    expected = brightness.score("", [images.open_image(run.image(i)) for i in range(40)])
    assert [kept.rows[i].scores["brightness"] for i in range(40)] == expected.tolist()
    assert all(list(row.scores) == ["a", "corner", "brightness"] for row in kept.rows.values())
    assert kept.verify() == []
    corner.asked.clear()
    again = compare([kept], [corner])
    assert corner.asked == []
    assert again.runs[0].pairs == found.runs[0].pairs


def test_no_more_pixels_are_decoded_together_than_one_large_image_has(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["sp_rerank.compare.collect"], "PIXELS_AT_ONCE", 3 * 64)
    run = make(tmp_path / "run", {"a": [float(i) for i in range(8)]})
    corner, done = Corner(), []
    compare([run], [corner], progress=done.append)
    assert corner.asked == [3, 3, 2]
    assert done[-1] == 8
    monkeypatch.setattr(sys.modules["sp_rerank.compare.collect"], "PIXELS_AT_ONCE", 10)
    alone = Corner("alone")
    compare([run], [alone])
    assert alone.asked == [1] * 8


def test_scores_are_not_kept_where_they_are_not_to_be(tmp_path, monkeypatch):
    run = make(tmp_path / "run", {"a": A})
    before = (run.path / "candidates.jsonl").read_bytes()
    compare([run], [Corner()], keep=False)
    assert (run.path / "candidates.jsonl").read_bytes() == before

    def full(path, scores):
        raise StorageError("the disk is full")

    monkeypatch.setattr(sys.modules["sp_rerank.compare.collect"], "add_scores", full)
    found = compare([run], [Corner()]).runs[0]
    assert found.problems == ("the new scores are not kept: the disk is full",)
    assert len(found.views) == 2


def test_missing_changed_and_unusable_candidates_are_named_and_left_out(tmp_path):
    run = make(tmp_path / "run", {"a": A, "b": [*B[:4], math.nan]}, statuses=[(3, "flagged")], n=7)
    run.image(0).unlink()
    run.image(1).write_bytes(png(99))
    outside = tmp_path / "outside.png"
    outside.write_bytes(run.image(2).read_bytes())
    found = compare([run]).runs[0]
    assert list(found.seeds) == [2, 4]
    text = "\n".join(found.problems)
    for line in (
        "1 candidates are left out: flagged",
        "2 of 7 candidates are not made",
        "images/00000.png: missing",
        "images/00001.png: changed since it was committed (sha256 differs)",
        "scorer b: the score of candidate 4 is not finite",
    ):
        assert line in text
    assert found.views[1].order == (2,)
    assert found.ensemble == (2,)
    run.image(2).unlink()
    (run.path / "images" / "00002.png").symlink_to(outside)
    assert "leads out of the run folder" in "\n".join(compare([run]).runs[0].problems)


def test_a_scorer_that_fails_on_some_images(tmp_path):
    run = make(tmp_path / "run", {"a": A})
    found = compare([run], [Corner(fails=(10, 40))]).runs[0]
    (problem,) = found.problems
    assert problem.startswith(
        "candidates 1, 4: scorer corner failed: RuntimeError: too dark for me; correct the scorer"
    )
    assert found.views[1].order == (3, 2, 0)
    assert found.views[0].rank_by == {"a": 1, "corner": None}
    assert found.scores["corner"][1] is None
    assert "corner" not in RunDir.read(run.path).rows[1].scores  # another day it may not fail
    assert report.markdown(compare([run], [Corner(fails=(10, 40))])).count("too dark for me") == 1


def test_a_scorer_that_fails_on_all_images_is_left_out(tmp_path):
    run = make(tmp_path / "run", {"a": A})
    found = compare([run], [Corner(fails=tuple(range(256)))]).runs[0]
    assert [view.scorer for view in found.views] == ["a"]
    assert "scorer corner has no score for any candidate, and is left out" in found.problems
    bare = make(tmp_path / "bare", {}, levels=[1, 2])
    with pytest.raises(UsageError, match=r"no candidate can be compared: .*too dark for me"):
        compare([bare], [Corner(fails=tuple(range(256)))])


@pytest.mark.parametrize("answer", [[0.5], [math.inf] * 5, [math.nan] * 5])
def test_a_scorer_that_answers_wrongly_is_named(tmp_path, answer):
    run = make(tmp_path / "run", {"a": A})
    odd = Corner()
    odd.score = lambda prompt, pictures: torch.tensor(answer[: len(pictures)] if len(answer) > 1 else [0.5, 0.5])
    problems = "\n".join(compare([run], [odd]).runs[0].problems)
    assert ("a tensor of shape (1,), got shape (2,)" if len(answer) == 1 else "is not finite") in problems


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda n: None, "got None"),
        (lambda n: [0.5] * n, "got a list"),
        (lambda n: torch.zeros(n, 1), "got shape (1, 1)"),
        (lambda n: torch.tensor(0.5), "got shape ()"),
    ],
)
def test_what_is_no_vector_of_scores_is_named(tmp_path, answer, got):
    odd = Corner()
    odd.score = lambda prompt, pictures: answer(len(pictures))
    problems = compare([make(tmp_path / "run", {"a": A})], [odd]).runs[0].problems
    assert problems[0].startswith("candidates 0, 1, 2, 3, 4: scorer corner: expected a score for each of 1 images")
    assert got in problems[0]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: device-side assert triggered")])
def test_memory_and_a_lost_device_are_no_fault_of_an_image(tmp_path, error):
    asked = []

    def score(prompt, pictures):
        asked.append(len(pictures))
        raise error

    odd = Corner()
    odd.score = score
    with pytest.raises(type(error)) as raised:
        compare([make(tmp_path / "run", {"a": A})], [odd])
    assert raised.value is error
    assert asked == [5]  # and not image by image again


def test_runs_that_cannot_be_compared(tmp_path):
    bare, run = make(tmp_path / "bare", {}, levels=[1, 2]), make(tmp_path / "run", {"a": A})
    with pytest.raises(UsageError, match="holds no scores; name a scorer"):
        compare([bare])
    with pytest.raises(UsageError, match=r"run .* was given twice"):
        compare([run, RunDir.read(tmp_path / "bare" / ".." / "run")])
    with pytest.raises(UsageError, match="scorer corner was given twice"):
        compare([run], [Corner(), Corner()])
    with pytest.raises(UsageError, match="name one"):
        compare([run], steady=True)
    with pytest.raises(UsageError, match="got none"):
        compare([])
    text = (run.path / "run.json").read_text().replace('"schema": 2', '"schema": 99')
    (run.path / "run.json").write_text(text)
    with pytest.raises(UsageError, match="newer sp-rerank: schema 99"):
        RunDir.read(run.path)


def test_a_search_has_no_figures_that_take_a_chance_sample(tmp_path):
    rounds = {"strategy": "screening", "rounds": [[4, 3]]}
    run = make(tmp_path / "run", {"a": A, "b": B}, statuses=[(0, "dropped"), (4, "dropped")], search=rounds)
    found = compare([run])
    assert [(view.best_of_n, view.normalized_gain, view.n_for_gain) for view in found.runs[0].views] == [
        (None, None, None)
    ] * 2
    assert found.runs[0].views[0].rank_by == {"a": 1, "b": 3}
    text = report.markdown(found)
    assert "the search dropped or steered candidates, so that these are no chance sample" in text
    assert "| a | 1 | ? | ? | 1st | 3rd |" in text
    assert "mean candidate to the best\n" not in text  # no column has it
    assert to_json(found)["runs"][0]["chance_sample"] is False
    assert report.plot(found).startswith(b"<?xml")
    whole = make(tmp_path / "whole", {"a": A, "b": B}, prompt="a cat")
    mean = compare([run, whole]).pairs[0]
    assert [estimate.n for estimate in (mean.kendall, *mean.normalized_gain)] == [2, 1, 1]
    other = make(tmp_path / "other", {"a": A, "b": B}, statuses=[(1, "dropped")])
    assert math.isnan(compare([run, other]).pairs[0].normalized_gain[0].value)


def test_a_search_that_goes_on_has_dropped_what_it_does_not_say_yet(tmp_path):
    run = make(tmp_path / "run", {"a": A}, search={"strategy": "halving", "rounds": [[0.4, 5]]}, n=9)
    assert compare([run]).runs[0].views[0].n_for_gain is None
    steered = make(tmp_path / "steered", {"a": A}, search={"strategy": "steering"})
    assert compare([steered]).runs[0].views[0].n_for_gain is None  # its candidates descend from each other


def test_the_plot_of_one_scorer_has_no_empty_half(tmp_path):
    one, two = make(tmp_path / "one", {"a@1": A}), make(tmp_path / "two", {"b@1": B}, prompt="a cat")
    text = report.plot(compare([one])).decode()  # a warning of matplotlib fails the test
    assert "score of a's pick: from mean (0) to best (1)" in text
    assert "Kendall" not in text
    assert (
        "score of the pick of each run's first scorer: from mean (0) to best (1)"
        in report.plot(compare([one, two])).decode()
    )


def test_one_candidate_and_constant_scores_have_figures_where_there_are_any(tmp_path):
    one = make(tmp_path / "one", {"a": [0.5], "b": [0.25]})
    same = make(tmp_path / "same", {"a": [0.5] * 3, "b": [0.1, 0.2, 0.3]})
    found = compare([one, same])
    assert [run.views[0].n_for_gain for run in found.runs] == [1, 1]
    assert math.isnan(found.runs[0].pairs[0].kendall.value)
    assert math.isnan(found.runs[1].views[0].normalized_gain["a"])
    assert found.runs[1].views[0].normalized_gain["b"] == pytest.approx(0)  # a blind pick is worth the mean
    assert math.isnan(found.pairs[0].kendall.value)
    json.dumps(to_json(found), allow_nan=False)
    assert "would have chosen candidate 0" in report.markdown(found)
    assert report.plot(found).startswith(b"<?xml")


def test_the_steadiness_of_a_pick(tmp_path, monkeypatch):
    monkeypatch.setattr(COMPARE, "RATIOS", (1.0, 0.5))
    run = make(tmp_path / "run", {}, levels=[200, 60, 50, 0])
    assert perturbation.RATIOS[0] == 1
    view = ImageOps.mirror(images.open_image(run.image(0)))
    assert np.asarray(view)[0, 0, 0] == 200  # the light corner has gone to the other side
    found = compare([run], [Corner(), BrightnessScorer()], steady=True).runs[0]
    corner, brightness = found.views
    assert corner.order == (0, 1, 2, 3)
    assert [(row.ratio, row.pick, row.came_from, row.went_to) for row in corner.robustness] == [
        (1.0, 0, 1, 1),
        (0.5, 0, 1, 1),
    ]
    assert [row.went_to for row in brightness.robustness] == [1, 1]
    dark = make(tmp_path / "dark", {}, levels=[0, 250, 240])
    upside = Corner()
    upside.score = lambda prompt, pictures: torch.tensor([  # higher for the dark, until the corner has moved
        (1 if np.asarray(p)[0, 0, 0] == 255 else -1) * (255.0 - float(np.asarray(p)[1, 1, 0])) for p in pictures
    ])
    row = compare([dark], [upside], steady=True).runs[0].views[0].robustness[0]
    assert (row.pick, row.came_from, row.went_to) == (1, 3, 3)
    averages = compare([dark, run], [upside], steady=True).robustness
    assert [(row.scorer, row.ratio, row.went_to.n) for row in averages] == [("corner", 1.0, 1), ("corner", 0.5, 1)]


def test_ties_come_from_the_calibration_and_are_told_in_words(tmp_path, monkeypatch):
    run = make(tmp_path / "run", {"a@1": A, "b@1": B})
    known = ScorerCalibration("a@1", 0.15, "d", 4, 0.0, True)  # margin .104
    monkeypatch.setattr(COMPARE, "calibration_of", lambda scorer: known if scorer == "a@1" else None)
    found = compare([run])
    a, b = found.runs[0].views
    assert (a.tie_groups, a.tied_first) == ((1, 1, 2, 2, 3), (1, 2))
    assert (b.tie_groups, b.tied_first) == (None, None)
    text = report.markdown(found)
    assert "a would have chosen candidate 1 (seed 41); the first 2 are not told apart (1, 2): 66% of simulated" in text
    assert "b would have chosen candidate 0 (seed 40); no calibration: ties unknown" in text


@pytest.mark.parametrize(
    ("last", "others"), [(0.1, "apart from all others:"), (math.nan, "apart from all others that it has a score for:")]
)
def test_a_pick_is_told_apart_from_all_others_only_where_all_are_scored(tmp_path, monkeypatch, last, others):
    known = ScorerCalibration("a@1", 0.1, "test", 10, 0.1, True)
    monkeypatch.setattr(COMPARE, "calibration_of", lambda scorer: known if scorer == "a@1" else None)
    found = compare([make(tmp_path / "run", {"a@1": [0.9, 0.5, last], "b@1": [1.0, 2.0, 3.0]})])
    assert f"it is told {others}" in report.markdown(found)


def run_command(*words):
    result = CliRunner().invoke(APP, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_compares_and_draws(tmp_path):
    one = make(tmp_path / "one", {"a@1": A, "b@1": B}, prompt="a lemon [bold]\x1b[2J")
    two = make(tmp_path / "two", {"a@1": A, "b@1": C}, prompt="a cat")
    result = run_command(one.path, two.path, "--scorer", "brightness", "--plot", tmp_path / "plot.svg")
    assert "## 2 runs of 2 prompts" in result.stdout
    assert "\x1b" not in result.stdout
    assert "[bold]" in result.stdout
    assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")
    assert (one.path / "index.html").is_file()  # the gallery knows the new scores
    record = json.loads(run_command(one.path, "--json").stdout)
    assert record["scorers"] == ["a@1", "b@1", "brightness"]
    assert record["runs"][0]["pairs"][0]["overlap"] == {"1": 0.0, "4": 0.75}
    with pytest.raises(UsageError, match="is not a folder"):
        run_command(one.path, "--plot", tmp_path / "none" / "plot.svg")


def test_a_run_that_cannot_be_compared_is_named_and_the_others_are_shown(tmp_path):
    good, lost, bare, newer = (tmp_path / name for name in ("good", "lost", "bare", "v99"))
    make(good, {"a": A, "b": B})
    shutil.rmtree(make(lost, {"a": A}).path / "images")
    make(bare, {}, levels=[1, 2])
    make(newer, {"a": A})
    (newer / "run.json").write_text((newer / "run.json").read_text().replace('"schema": 2', '"schema": 99'))
    result = run_command(newer, lost, good, bare, tmp_path / "none")
    assert result.exit_code == 0
    assert "a would have chosen candidate 1" in result.stdout
    assert "## " + str(lost) not in result.stdout
    lines = [line.removeprefix("not compared: ") for line in result.stderr.splitlines()]
    assert len(lines) == 4
    assert "newer sp-rerank: schema 99" in lines[0]
    assert lines[1].startswith(f"{tmp_path / 'none'} is not a run folder")
    assert lines[2].startswith(f"{lost}: no candidate can be compared: images/00000.png: missing")
    assert lines[3] == f"{bare} holds no scores; name a scorer"


def test_the_first_error_ends_the_command_where_no_run_is_left(tmp_path, capsys):
    shutil.rmtree(make(tmp_path / "lost", {"a": A}).path / "images")
    make(tmp_path / "bare", {}, levels=[1, 2])
    with pytest.raises(NothingUsableError, match="lost: no candidate can be compared"):
        command([tmp_path / "lost", tmp_path / "bare"])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"not compared: {tmp_path / 'bare'} holds no scores; name a scorer\n"
    with pytest.raises(UsageError, match="none is not a run folder"):
        command([tmp_path / "none"], scorer=["no such scorer"])


def _no_weights(device, dtype):
    raise OSError("no weights\nin the cache")


def test_a_builder_that_raises_ends_the_command_in_one_line(tmp_path, monkeypatch):
    point = SimpleNamespace(name="broken", dist=None, module="their.package", load=lambda: _no_weights)
    real = metadata.entry_points
    ours = {"sp_rerank.scorers": [point]}
    monkeypatch.setattr(metadata, "entry_points", lambda **which: ours.get(which.get("group")) or real(**which))
    make(tmp_path / "run", {"a": A})
    with pytest.raises(UsageError) as raised:
        run_command(tmp_path / "run", "--scorer", "broken")
    assert str(raised.value).startswith("scorer 'broken' of the package their.package cannot be built: ")
    assert "no weights in the cache" in str(raised.value)
    assert raised.value.exit_code == 2


def test_new_scores_are_shown_where_the_run_can_be_read(tmp_path):
    good = make(tmp_path / "good", {"a": A})
    make(tmp_path / "v99", {"a": A})
    config = tmp_path / "v99" / "run.json"
    config.write_text(config.read_text().replace('"schema": 2', '"schema": 99'))
    result = run_command(config.parent, good.path, "--scorer", "brightness")
    assert "brightness would have chosen candidate 4" in result.stdout
    assert "brightness" in (good.path / "index.html").read_text(encoding="utf-8")


def test_names_in_a_plot_are_text_and_no_mathematics(tmp_path):
    odd = [r"$\frac$ <b>&", "_hidden", "two\nlines\x1b"]
    run = make(tmp_path / "run", dict(zip(odd, (A, B, C), strict=True)))
    root = ElementTree.fromstring(report.plot(compare([run])))
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in (odd[0], "_hidden", "two lines "):
        assert name in texts
    assert f"score of {odd[0]}'s pick: from mean (0) to best (1)" in texts


def test_a_plot_of_another_format_is_refused(tmp_path):
    run = make(tmp_path / "run", {"a": A})
    with pytest.raises(UsageError, match=r"expected a name that ends in \.svg"):
        run_command(run.path, "--plot", tmp_path / "plot.jpg")


def test_a_scorer_without_a_name_is_refused(tmp_path):
    nameless = Corner(name=None)
    with pytest.raises(UsageError, match="scorer Corner: expected a name"):
        compare([make(tmp_path / "run", {"a": A})], [nameless])


def test_json_names_the_runs_that_could_not_be_compared(tmp_path):
    good = make(tmp_path / "good", {"a": A})
    record = json.loads(run_command(good.path, tmp_path / "none", "--json").stdout)
    (reason,) = record["not_compared"]
    assert reason.startswith(f"{tmp_path / 'none'} is not a run folder")


def test_the_command_fails_where_a_scorer_that_was_asked_for_has_no_score(tmp_path, monkeypatch):
    run = make(tmp_path / "run", {"a": A})
    monkeypatch.setattr("sp_rerank.cli.compare.load_scorer", lambda *_: Corner(fails=tuple(range(256))))
    with pytest.raises(UsageError, match=r"too dark for me; .*; the others are compared"):
        run_command(run.path, "--scorer", "corner")
    monkeypatch.setattr("sp_rerank.cli.compare.load_scorer", lambda *_: NotFinite())
    with pytest.raises(NothingUsableError, match="scorer nan: no score for any candidate; the others are compared"):
        run_command(run.path, "--scorer", "nan")


class NotFinite:
    name = "nan"

    def score(self, prompt, pictures):
        return torch.full((len(pictures),), math.nan)


def test_a_run_without_a_finite_score_is_not_compared(tmp_path):
    with pytest.raises(NothingUsableError, match="is not finite"):
        compare([make(tmp_path / "run", {}, levels=[1, 2])], [NotFinite()])


def test_a_damaged_calibration_ends_it_before_an_image_is_scored(tmp_path):
    scorer = Corner()
    scorer.folder = tmp_path
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(UsageError, match="is no calibration"):
        compare([make(tmp_path / "run", {"a": A})], [scorer])
    assert scorer.asked == []


@pytest.mark.parametrize(("key", "value"), [("prompt", None), ("n", 10**30), ("seed", "x"), ("scorers", {"x": 1})])
def test_a_damaged_configuration_ends_in_one_line(tmp_path, key, value):
    path = make(tmp_path / "run", {"a": A}).path
    config = json.loads((path / "run.json").read_text())
    config = {k: v for k, v in {**config, key: value}.items() if v is not None}
    (path / "run.json").write_text(json.dumps(config))
    with pytest.raises((UsageError, StorageError), match=key) as caught:
        run_command(path)
    assert "\n" not in str(caught.value)
