"""HP&CC by hand, with a scorer that minds it and one that does not."""

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import typer
from scipy import stats
from support.halves import BRIGHTNESS, Corner, put
from typer.testing import CliRunner

from sp_rerank.cli import evaluate
from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.report.tables import plain
from sp_rerank.storage.perturbation import RATIOS
from sp_rerank.train.preferences import PreferenceGroup
from sp_rerank.train.robustness import markdown, robustness, sensitivity_plot


def test_a_scorer_that_minds_the_flip_by_hand(tmp_path):
    halves = [(0, 255), (51, 204), (102, 0), (153, 51), (204, 102)]
    groups = [
        PreferenceGroup.ranked("x", [put(tmp_path / f"{i}.png", *pair) for i, pair in enumerate(halves)], range(5))
    ]
    before, after = np.array(halves).T / 255
    result = robustness(Corner(), groups, data="x", ratios=(1.0,))
    plain, flipped = result.rows
    assert (plain.ratio, plain.accuracy.value, plain.flipped.value, plain.shift) == (None, 0, 0, 0)
    assert (plain.kendall.value, plain.top_k.value) == (pytest.approx(1), 1)
    assert flipped.accuracy.value == 0.7  # of ten pairs 0 > 1 > 2, 0 > 3, 0 > 4, 1 > 3, 1 > 4 are right
    assert flipped.flipped.value == 0.7
    assert flipped.shift == pytest.approx(np.abs(before - after).mean() / before.std())
    assert flipped.kendall.value == pytest.approx(stats.kendalltau(before, after).statistic)
    assert flipped.top_k.value == 0.75  # 1 2 3 4 before, 0 1 3 4 after
    assert (result.images, result.groups) == (5, 1)


def test_a_scorer_that_does_not_mind(tmp_path):
    groups = [
        PreferenceGroup.ranked(
            str(number), [put(tmp_path / f"{number}-{i}.png", 40 * i, 40 * i) for i in range(6)], range(6, 0, -1)
        )
        for number in range(3)
    ]
    result = robustness(BRIGHTNESS, groups, data="x", batch_size=4)
    assert [row.ratio for row in result.rows] == [None, *RATIOS]
    for row in result.rows:
        assert (row.accuracy.value, row.flipped.value, row.top_k.value) == (1, 0, 1)
        assert row.kendall.value == pytest.approx(1)
        assert row.shift == pytest.approx(0, abs=1e-6)
    assert result.rows[1].flipped.n == 45


def test_what_cannot_be_measured_is_left_empty(tmp_path):
    groups = [PreferenceGroup.ranked("x", [put(tmp_path / f"{i}.png", 9, 9) for i in range(2)], [1, 2])]
    (_, row) = robustness(BRIGHTNESS, groups, data="x", ratios=[0.9]).rows
    assert all(math.isnan(value) for value in (row.shift, row.kendall.value, row.top_k.value))
    text = markdown([robustness(BRIGHTNESS, groups, data="x", ratios=[0.9])])
    assert "| brightness | HP&CC 0.9 | 0.0 | 0.0 |  |  |  |" in text
    assert "nan" not in text
    with pytest.raises(UsageError, match="ratios above 0"):
        robustness(BRIGHTNESS, groups, data="x", ratios=[1.1])
    with pytest.raises(NothingUsableError, match="no pair of images"):
        robustness(BRIGHTNESS, [], data="x")


APP = typer.Typer()
APP.command("robustness")(evaluate.robustness)
APP.command("correlate")(evaluate.correlate)


def run(*words):
    result = CliRunner().invoke(APP, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_writes_table_and_plot(tmp_path):
    entries = []
    for number in range(3):
        names = [f"{number}-{i}.png" for i in range(5)]
        for i, name in enumerate(names):
            put(tmp_path / name, 30 * i, 20 * i + number)
        entries.append({"prompt": str(number), "generations": names, "ranking": [5, 4, 3, 2, 1]})
    (tmp_path / "test.json").write_text(json.dumps(entries))
    result = run("robustness", "--scorer", "brightness", "--data", tmp_path, "--out", tmp_path / "out")
    assert "| brightness | HP&CC 0.97 | 100.0" in result.stdout
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["robustness.json", "robustness.md", "robustness.svg"]
    (record,) = json.loads(files["robustness.json"])
    assert [row["ratio"] for row in record["rows"]] == [None, *RATIOS]
    ElementTree.fromstring(files["robustness.svg"])


@pytest.mark.parametrize("name", [r"$\frac$", "_hidden", "<b>&\x1b"])
def test_a_plot_shows_names_as_they_stand(name, tmp_path):
    groups = [PreferenceGroup.ranked("x", [put(tmp_path / f"{i}.png", 9, i) for i in range(2)], [1, 2])]
    result = replace(robustness(BRIGHTNESS, groups, data=name, ratios=(0.9,)), scorer=f"{name}@1")
    drawn = "".join(ElementTree.fromstring(sensitivity_plot([result])).itertext())
    assert f"{plain(name)}, {plain(name)}" in drawn


def test_a_plot_is_the_same_bytes_again(tmp_path):
    groups = [PreferenceGroup.ranked("x", [put(tmp_path / f"{i}.png", 9, i) for i in range(2)], [1, 2])]
    results = [robustness(BRIGHTNESS, groups, data="x")]
    assert sensitivity_plot(results) == sensitivity_plot(results)
