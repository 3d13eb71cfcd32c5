"""Accuracies against counting by hand and against the rules of the published evaluations; what is written of them."""

import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from sp_rerank.cli import evaluate as commands
from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.report.tables import table, to_json
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.calibration import ScorerCalibration, calibration_of
from sp_rerank.train import evaluate as measure
from sp_rerank.train.evaluate import ScoredGroup, evaluate, score_groups
from sp_rerank.train.preferences import ImageReader, ImageSource, Pair, PreferenceGroup

BRIGHTNESS = BrightnessScorer()


def scored(ranks, scores, prompt="x", annotations=()):
    group = PreferenceGroup.ranked(prompt, [ImageSource(prompt, str(i)) for i in range(len(ranks))], ranks)
    return ScoredGroup(prompt, group.pairs, group.ranks, annotations, np.array([scores], float))


def grey(folder, *levels):
    """An image file a level; None is one that cannot be read."""
    sources = []
    for number, level in enumerate(levels):
        path = folder / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if level is None:
            path.write_text("not an image")
        else:
            Image.new("L", (4, 4), level).save(path)
        sources.append(ImageSource(path))
    return sources


# The figures

RANKED = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 4), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, math.nan]), min_size=n, max_size=n),
    )
)


@given(st.lists(RANKED, min_size=1, max_size=5))
@settings(max_examples=60)
def test_micro_is_image_rewards_count(groups):
    right = compared = 0
    for ranks, scores in groups:
        for i, j in combinations(range(len(ranks)), 2):
            if ranks[i] != ranks[j]:
                compared += 1
                better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
                right += scores[better] > scores[worse]
    estimate = measure.micro_accuracy([scored(*group) for group in groups])
    assert estimate.n == compared
    assert estimate.value == pytest.approx(right / compared if compared else math.nan, nan_ok=True)


@given(st.lists(st.permutations(range(5)).flatmap(lambda p: st.tuples(st.just(p), RANKED)), min_size=1, max_size=5))
@settings(max_examples=60)
def test_macro_is_hps_v2s_inversion_score(drawn):
    groups = [([*ranks, 2], list(map(float, order[: len(ranks) + 1]))) for order, (ranks, _) in drawn if len(ranks) < 5]
    if not groups:
        return
    expected = []
    for ranks, scores in groups:
        place = [sorted(scores, reverse=True).index(score) for score in scores]
        pairs = list(combinations(range(len(ranks)), 2))
        inverted = sum((place[i] - place[j]) * (ranks[i] - ranks[j]) < 0 for i, j in pairs)
        expected.append(1 - inverted / len(pairs))
    estimate = measure.macro_accuracy([scored(*group) for group in groups])
    assert (estimate.value, estimate.n) == (pytest.approx(np.mean(expected)), len(groups))


def test_accuracies_by_hand():
    groups = [scored([1, 2, 3], [3, 1, 2], "a"), scored([1, 1, 2], [1, 0, 1], "b"), scored([2, 1], [0, math.nan], "c")]
    # a: 2 of 3. b: the tie skipped, 1 > 1 is a predicted tie, 0 > 1 is wrong: 0 of 2. c: 0 of 1.
    assert measure.micro_accuracy(groups).value == pytest.approx(2 / 6)
    # a: one inversion of 3. b: one, and half a one, of 3. c: not comparable counts as inverted.
    assert measure.macro_accuracy(groups).value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_margins_by_hand():
    groups = [scored([1, 2, 5], [3, 1, 2]), scored([1, 1, 4], [1, 5, 2])]
    margins = measure.margins(groups)
    assert margins is not None
    # first: 1 apart right, 3 apart wrong, 4 apart right; second: 3 apart wrong and right
    assert [(m.ranks_apart, m.accuracy, m.pairs) for m in margins.table] == [
        (1, 1.0, 1),
        (3, pytest.approx(1 / 3), 3),
        (4, 1.0, 1),
    ]
    assert (margins.similar.value, margins.similar.n) == (1.0, 1)
    assert (margins.clear.value, margins.clear.n) == (0.5, 4)
    assert measure.margins([ScoredGroup("x", (Pair(0, 1, 1),), None, (), np.array([[1.0, 0.0]]))]) is None


@given(
    st.lists(
        st.tuples(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, math.nan]), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=100)
def test_the_threshold_of_ties_is_the_best_one(pairs):
    gap, label = np.array(pairs).T

    def points(threshold):
        total = 0.0
        for g, wanted in pairs:
            if not math.isnan(g):
                said = 0.5 if abs(g) <= threshold else float(g > 0)
                total += 1 if said == wanted else 0.5 if (said == 0.5) != (wanted == 0.5) else 0
        return total

    totals = {t: points(t) for t in sorted({0.0, *(abs(g) for g in gap if not math.isnan(g))})}
    assert measure.best_threshold(gap, label) == max(totals, key=lambda t: (totals[t], -t))


def test_the_tie_rule_is_measured_on_other_prompts():
    rng = np.random.default_rng(0)
    groups = []
    for number in range(300):  # people tie where the truth is within .5
        truth = rng.normal(size=2)
        label = 0.5 if abs(truth[0] - truth[1]) < 0.5 else float(truth[0] > truth[1])
        groups.append(ScoredGroup(str(number), (Pair(0, 1, label),), None, (), truth[None] * 2))
    rule = measure.tie_rule(groups)
    assert rule is not None
    assert rule.threshold == pytest.approx(1, abs=0.2)
    assert rule.accuracy.value > 0.95
    assert rule.validation_pairs + rule.accuracy.n == 300
    assert measure.tie_rule([scored([1, 2], [0, 1])]) is None
    assert measure.tie_rule([scored([1, 1], [0, 1])]) is None  # no prompt left to measure on


def test_human_rows_by_hand():
    group = scored([1, 2, 3], [0, 0, 0], annotations=((1.0, 2.0, 3.0), (2.0, 1.0, 3.0), (1.0, 2.0, 2.0)))
    human = measure.human_agreement([group, scored([1, 2], [0, 0])])
    assert human is not None
    # Pairs (0, 1), (0, 2), (1, 2): + - +, + + +, + + tie. Two by two: 1 of 3, 3 of 3, 1 of 1.
    assert (human.single_single.value, human.single_single.n) == (5 / 7, 7)
    # The mean says + + +: 2 of 3, 3 of 3, 2 of 3.
    assert (human.single_averaged.value, human.single_averaged.n) == (7 / 9, 9)
    assert measure.human_agreement([scored([1, 2], [0, 0])]) is None
    divided = measure.human_agreement([group, scored([1, 2], [0, 0], "y", ((1.0, 2.0), (2.0, 1.0)))])
    assert divided is not None  # a mean that ties has no better image to agree on
    assert (divided.single_single.value, divided.single_averaged.n) == (5 / 8, 9)


# Scoring


class Spy:
    """Brightness, and the sizes of the batches."""

    name = "spy"

    def __init__(self):
        self.batches = []

    def score(self, prompt, images):
        self.batches.append(list(prompt))
        return BRIGHTNESS.score(prompt, images)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_each_image_is_scored_once_in_batches_across_groups(tmp_path, batch_size):
    groups = [
        PreferenceGroup.ranked("a", grey(tmp_path / "a", 10, None, 30, 50), [3, 2, 2, 1]),
        PreferenceGroup.ranked("b", grey(tmp_path / "b", None, 70), [1, 2]),
        PreferenceGroup.ranked("c", grey(tmp_path / "c", 5, 250), [2, 1], [[1, 2], [2, 1]]),
    ]
    spy, reader, done = Spy(), ImageReader(), []
    result = list(
        score_groups(
            spy,
            iter(groups),
            reader=reader,
            batch_size=batch_size,
            views=[lambda image: image, lambda image: image.point(lambda v: 255 - v)],
            progress=done.append,
        )
    )
    assert [group.prompt for group in result] == ["a", "c"]
    assert np.round(result[0].scores * 255).tolist() == [[10, 30, 50], [245, 225, 205]]
    assert np.round(result[1].scores * 255).tolist() == [[5, 250], [250, 5]]
    assert result[0].ranks == (3, 2, 1)
    assert result[0].pairs == (Pair(0, 1, 0), Pair(0, 2, 0), Pair(1, 2, 0))
    assert result[1].annotations == ((1, 2), (2, 1))
    assert [prompt for batch in spy.batches for prompt in batch] == [*"aaaaaabbcccc"]
    assert {len(batch) for batch in spy.batches[:-1]} <= {batch_size}
    assert len(reader.skipped) == 2
    assert done == list(range(1, 9))


def test_groups_are_finished_as_they_come(tmp_path):
    taken = []

    def groups():
        for name in "abcdef":
            taken.append(name)
            yield PreferenceGroup.ranked(name, grey(tmp_path / name, 1, 2), [1, 2])

    next(score_groups(BRIGHTNESS, groups(), reader=ImageReader(), batch_size=4))
    assert taken == ["a", "b"]


class Broken:
    name = "broken"

    def __init__(self, scores):
        self.scores = scores

    def score(self, prompt, images):
        return torch.tensor(self.scores[: len(images)])


def test_a_scorer_that_misbehaves(tmp_path):
    groups = [PreferenceGroup.ranked("a", grey(tmp_path, 1, 2, 3), [1, 2, 3])]
    with pytest.raises(UsageError, match="scorer broken: expected a score for each of 3 images, got 2"):
        evaluate(Broken([0.0, 1.0]), groups, data="x")
    evaluation = evaluate(Broken([math.inf, 1.0, math.nan]), groups, data="x")
    assert (evaluation.nonfinite, evaluation.micro.value, evaluation.macro.value) == (2, 0, 0)
    with pytest.raises(NothingUsableError, match="1 images cannot be read"):
        evaluate(BRIGHTNESS, [PreferenceGroup.ranked("a", grey(tmp_path, 1, None), [1, 2])], data="x")


# The whole of it


def write_data(folder, seed=0, tie=False):
    """Ten prompts of four images; the brighter one is better, but for the last two of each."""
    rng = np.random.default_rng(seed)
    entries = []
    for number in range(10):
        levels = sorted(rng.choice(200, 4, replace=False).tolist(), reverse=True)
        grey(folder / str(number), *levels)
        ranking = [1, 2, 3, 3] if tie else [1, 2, 4, 3]
        names = [f"{number}/{i}.png" for i in range(4)]
        entries.append({"prompt": f"prompt {number}", "generations": names, "ranking": ranking})
    (folder / "test.json").write_text(json.dumps(entries))
    return folder


APP = typer.Typer()
APP.command("evaluate")(commands.evaluate)
APP.command("robustness")(commands.robustness)
APP.command("correlate")(commands.correlate)


def run(*words):
    result = CliRunner().invoke(APP, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_evaluates_across_data_sets(tmp_path):
    one, two = write_data(tmp_path / "one"), write_data(tmp_path / "two", seed=1, tie=True)
    result = run("evaluate", "--scorer", "brightness", "--data", one, "--data", two, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "| brightness | 83.3 [83.3, 83.3] | 83.3 [83.3, 83.3] | 100.0" in result.stdout
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["evaluation.json", "evaluation.md", "evaluation.svg"]
    first, second = json.loads(files["evaluation.json"])
    assert (first["data"], first["micro"]["value"], first["groups"], first["images"]) == (str(one), 5 / 6, 10, 40)
    assert (second["ties"], second["micro"]["n"]) == (10, 50)
    assert second["tie_rule"]["accuracy"]["value"] > 0
    assert [row["ranks_apart"] for row in first["margins"]["table"]] == [1, 2, 3]
    assert first["human"] is None
    ElementTree.fromstring(files["evaluation.svg"])
    run("evaluate", "--scorer", "brightness", "--data", one, "--data", two, "--out", tmp_path / "again")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}


def test_the_command_says_json_and_names_skipped_images(tmp_path):
    data = write_data(tmp_path)
    (data / "3" / "0.png").write_text("no image")
    result = run("evaluate", "--scorer", "brightness", "--data", data, "--json")
    (evaluation,) = json.loads(result.stdout)
    assert (evaluation["images"], list(evaluation["skipped"])) == (39, [str(data / "3" / "0.png")])
    assert "skipped 1 of 40 images" in result.stderr
    assert result.stderr.count("cannot be read as an image") == 1


def test_the_command_refuses_what_does_not_fit(tmp_path):
    data = write_data(tmp_path)
    for words, message in [
        (["--scorer", "brightness", "--scorer", "brightness", "--data", data], "given twice"),
        (["--scorer", "brightness", "--data", data, "--images", data, "--images", data], "2 times for 1"),
        (["--scorer", "brightness", "--data", data, "--layout", "hpd-test"], "no column image_path, rank"),
        (["--scorer", "brightnes", "--data", data], "did you mean 'brightness'"),
    ]:
        with pytest.raises(UsageError, match=message):
            run("evaluate", *words)


def test_without_matplotlib_the_command_stops_before_it_scores(tmp_path, monkeypatch):
    data = write_data(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install sp-rerank\[train\]"):
        run("evaluate", "--scorer", "brightness", "--data", data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run("evaluate", "--scorer", "brightness", "--data", data).exit_code == 0


def test_human_rows_and_undefined_figures_in_the_tables():
    groups = [scored([1, 1], [0, 1], "a", annotations=((1.0, 2.0), (1.0, 2.0)))]
    evaluation = measure.Evaluation(
        "a|b", "s@1", 1, 2, {}, 0, 1, measure.micro_accuracy(groups), measure.macro_accuracy(groups), None,
        measure.margins(groups), measure.human_agreement(groups), measure.calibration(groups),
    )  # fmt: skip
    text = measure.markdown([evaluation])
    assert "| s@1 |  | 100.0 |" in text
    assert "| human: single against single | 100.0 |" in text
    assert "a&#124;b" in text
    for block in text.split("\n\n"):
        rows = [line.count(" |") for line in block.splitlines() if line.startswith("|")]
        assert all(one == other for one, other in pairwise(rows))
    record = to_json(evaluation)
    assert record["micro"]["value"] is None
    json.dumps(record, allow_nan=False)
    assert table(["a"], [["b"]]) == "| a |\n| --- |\n| b |\n"


# The calibration


def test_single_annotators_calibrate_where_they_are_known():
    """One of three people disagrees with the order: P = 2/3 of a gap of 1, whatever the mean order says."""
    group = scored([1, 2], [1, 0], annotations=((1.0, 2.0), (1.0, 2.0), (2.0, 1.0)))
    found = measure.calibration([group])
    assert found.temperature == pytest.approx(1 / math.log(2))
    assert sum(one.n for one in found.bins) == 3
    tied = measure.calibration([scored([1, 2], [1, 0], annotations=((1.0, 2.0), (1.5, 1.5)))])
    assert [(one.observed, one.n) for one in tied.bins] == [(0.75, 2)]
    both = measure.calibration([group, scored([2, 1], [0, 1], "y")])
    assert sum(one.n for one in both.bins) == 4
    assert measure.calibration([scored([1, 2], [1, 0])]).temperature == 0


class FromFolder(BrightnessScorer):
    """Brightness as if its weights had been loaded."""

    name = "light@1"

    def __init__(self, folder):
        self.folder = folder


def test_the_command_keeps_a_calibration_beside_the_weights(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data")
    words = ["evaluate", "--data", data, "--keep-calibration"]
    with pytest.raises(UsageError, match="loaded from a folder of weights"):
        run(*words, "--scorer", "brightness")
    monkeypatch.setattr(evaluate, "load_scorer", lambda spec, model, device: FromFolder(tmp_path))
    result = run(*words, "--scorer", "light", "--simulated", "--json")
    (evaluation,) = json.loads(result.stdout)
    kept = calibration_of(FromFolder(tmp_path))
    assert kept == ScorerCalibration(
        "light@1", evaluation["calibration"]["temperature"], str(data), 60, evaluation["calibration"]["error"], True
    )
    assert f"written: {tmp_path / 'calibration.json'}" in result.stderr
    with pytest.raises(UsageError, match="expected one, a scorer has one"):
        run(*words, "--data", tmp_path)
    with pytest.raises(UsageError, match="expected it with --keep-calibration"):
        run("evaluate", "--data", data, "--simulated")
