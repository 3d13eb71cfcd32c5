"""The command `evaluate`, and what is written of an evaluation."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import typer
from support.scored_groups import gray, scored
from typer.testing import CliRunner

from sp_rerank.cli import evaluate as commands
from sp_rerank.errors import UsageError
from sp_rerank.report.tables import plain, table, to_json
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.calibration import ScorerCalibration, calibration_of
from sp_rerank.train import accuracy, tables
from sp_rerank.train.evaluate import Evaluation, evaluate
from sp_rerank.train.preferences import PreferenceGroup


def write_data(folder, seed=0, tie=False):
    """Ten prompts of four images; the brighter one is better, but for the last two of each."""
    rng = np.random.default_rng(seed)
    entries = []
    for number in range(10):
        levels = sorted(rng.choice(200, 4, replace=False).tolist(), reverse=True)
        gray(folder / str(number), *levels)
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
    assert evaluation["images"] == 39
    assert list(evaluation["skipped"]) == [str(data / "3" / "0.png")]
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
    evaluation = Evaluation(
        "a|b", "s@1", 1, 2, {}, 0, 1, accuracy.micro_accuracy(groups), accuracy.macro_accuracy(groups), None,
        accuracy.margins(groups), accuracy.human_agreement(groups), accuracy.calibration(groups),
    )  # fmt: skip
    text = tables.markdown([evaluation])
    assert "| s@1 |  | 100.0 |" in text
    assert "| human: single against single | 100.0 |" in text
    assert "a&#124;b" in text
    for block in text.split("\n\n"):
        rows = [line.count(" |") for line in block.splitlines() if line.startswith("|")]
        assert all(row == other for row, other in pairwise(rows))
    record = to_json(evaluation)
    assert record["micro"]["value"] is None
    json.dumps(record, allow_nan=False)
    assert table(["a"], [["b"]]) == "| a |\n| --- |\n| b |\n"


@pytest.mark.parametrize("name", [r"$\frac$", "_hidden", "<b>&\x1b"])
def test_a_plot_shows_names_as_they_stand(name, tmp_path):
    groups = [PreferenceGroup.ranked("x", gray(tmp_path, 10, 20), [2, 1])]
    evaluation = replace(evaluate(BrightnessScorer(), groups, data=name), scorer=f"{name}@1")
    drawn = "".join(ElementTree.fromstring(tables.reliability_plot([evaluation])).itertext())
    assert f"{plain(name)}, {plain(name)}: " in drawn


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
    monkeypatch.setattr(commands, "load_scorer", lambda spec, model, device, *dtype: FromFolder(tmp_path))
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
