"""Generators under two scorers."""

import hashlib
import json
import logging
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import typer
from PIL import Image
from support.halves import BRIGHTNESS, Corner, Darkness, put
from typer.testing import CliRunner

from sp_rerank.cli import evaluate
from sp_rerank.config import RunConfig
from sp_rerank.errors import UsageError
from sp_rerank.report.tables import plain
from sp_rerank.run.records import Row
from sp_rerank.run.writer import RunWriter
from sp_rerank.stats.agreement import Estimate
from sp_rerank.storage.images import encode
from sp_rerank.train.correlation import Correlation, Generator, correlate, markdown, read_made, scatter_plot

APP = typer.Typer()
APP.command("robustness")(evaluate.robustness)
APP.command("correlate")(evaluate.correlate)


def run(*words):
    result = CliRunner().invoke(APP, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def make_run(folder, model, levels, prompt="a lemon", scores=None, statuses=None):
    config = RunConfig(n=len(levels), prompt=prompt, model=model, steps=20, guidance_scale=7.5, scheduler="PNDM")
    with RunWriter.start(folder, config) as run:
        batch = []
        for index, level in enumerate(levels):
            png = encode(Image.new("RGB", (4, 4), (level,) * 3), parameters="", record={})
            row = Row(
                index=index, seed=index, status=statuses[index] if statuses else "ok",
                scores=scores[index] if scores else {}, sha256=hashlib.sha256(png).hexdigest(), nfe=1,
                batch_size=1,
            )  # fmt: skip
            batch.append((row, png))
        run.commit(batch)
    return folder


def test_scorers_that_disagree_about_every_generator(tmp_path):
    levels = {"a": [10, 20], "b": [100, 110], "c": [200, 220], "d": [50, 60]}
    runs = [make_run(tmp_path / name, name, shades) for name, shades in levels.items()]
    done = []
    result = correlate((BRIGHTNESS, Darkness()), read_made(runs), batch_size=3, progress=done.append)
    assert (result.pearson.value, result.spearman.value) == (pytest.approx(-1), pytest.approx(-1))
    assert result.prompts == 1
    assert [g.name for g in result.generators] == [f"{name}, 20 steps, guidance 7.5, PNDM" for name in "abcd"]
    assert result.generators[0].scores == (pytest.approx(15 / 255), pytest.approx(240 / 255))
    assert done == list(range(1, 17))
    ElementTree.fromstring(scatter_plot(result))
    assert scatter_plot(result) == scatter_plot(result)
    assert "| a, 20 steps, guidance 7.5, PNDM | 2 | 0.0588 | 0.9412 |" in markdown(result)


@pytest.mark.parametrize("name", [r"$\frac$", "_hidden", "<b>&\x1b"])
def test_a_plot_shows_names_as_they_stand(name):
    unknown = Estimate(0.5, 0.4, 0.6, 3)
    result = Correlation((f"{name}@1", "b@1"), 1, (Generator(f"made by {name}", (0.0, 1.0), 1),), unknown, unknown)
    for names in (result, replace(result, scorers=("b@1", f"{name}@1"))):
        drawn = "".join(ElementTree.fromstring(scatter_plot(names)).itertext())
        assert f"mean score by {plain(name)}" in drawn
        assert f"made by {plain(name)}" in drawn


def test_stored_scores_are_taken_and_what_was_lost_is_left_out(tmp_path):
    runs = [
        make_run(
            tmp_path / name, name, [0, 0, 0], scores=[{"brightness": value}, {"brightness": value}, {}],
            statuses=["ok", "flagged", "ok"],
        )
        for name, value in [("a", 0.25), ("b", 0.5), ("c", 1.0)]
    ]  # fmt: skip
    result = correlate((BRIGHTNESS, Darkness()), read_made(runs))
    assert [g.scores[0] for g in result.generators] == [0.125, 0.25, 0.5]
    assert [g.images for g in result.generators] == [2, 2, 2]
    assert math.isnan(result.pearson.value)  # every image is equally dark


def write_list(folder, entries):
    for _, _, name, level in entries:
        put(folder / name, level, level)
    file = folder / "list.json"
    file.write_text(json.dumps([{"generator": g, "prompt": p, "image": name} for g, p, name, _ in entries]))
    return file


def test_only_shared_prompts_count_and_each_counts_once(tmp_path, caplog):
    entries = [(g, "shared", f"{g}1.png", 40 * i) for i, g in enumerate("abc")]
    entries += [(g, "shared", f"{g}2.png", 40 * i) for i, g in enumerate("abc")]
    entries += [(g, "other", f"{g}3.png", 40 * i + 100) for i, g in enumerate("abc")]
    entries += [("a", "its own", "a4.png", 255)]
    file = write_list(tmp_path, entries)
    (tmp_path / "b2.png").write_text("no image")
    with caplog.at_level(logging.WARNING):
        result = correlate((BRIGHTNESS, Corner()), read_made([file]))
    assert "1 images of prompts that not every generator has" in caplog.text
    assert "1 of 9 images have no score" in caplog.text
    assert [g.images for g in result.generators] == [3, 2, 3]
    assert [g.scores[0] * 255 for g in result.generators] == pytest.approx([50, 90, 130])
    assert (result.prompts, result.spearman.value) == (2, pytest.approx(1))


def test_what_cannot_be_correlated_is_said(tmp_path):
    two = write_list(tmp_path, [("a", "x", "1.png", 1), ("b", "x", "2.png", 2)])
    with pytest.raises(UsageError, match="at least 3 generators, got 2: a; b"):
        correlate((BRIGHTNESS, Darkness()), read_made([two]))
    with pytest.raises(UsageError, match="got none"):
        correlate((BRIGHTNESS, Darkness()), [])
    apart = write_list(tmp_path, [(g, g, f"{g}.png", 1) for g in "abc"])
    with pytest.raises(UsageError, match="no prompt in common"):
        correlate((BRIGHTNESS, Darkness()), read_made([apart]))
    with pytest.raises(UsageError, match="brightness twice"):
        correlate((BRIGHTNESS, BRIGHTNESS), read_made([apart]))
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError, match=r"a\.png is not there"):
        read_made([apart])
    apart.write_text('[{"generator": "a"}]')
    with pytest.raises(UsageError, match="expected a JSON list"):
        read_made([apart])
    with pytest.raises(UsageError, match="is no run folder and no list"):
        read_made([tmp_path])


def test_the_command_correlates(tmp_path, monkeypatch):
    from sp_rerank import scorers

    monkeypatch.setattr(
        scorers, "load_scorer", lambda spec, device, dtype=None: {"dark": Darkness()}.get(spec, BRIGHTNESS)
    )
    file = write_list(tmp_path, [(g, "x", f"{g}.png", 40 * i) for i, g in enumerate("abc")])
    result = run("correlate", file, "--scorer", "brightness", "--scorer", "dark", "--out", tmp_path / "out")
    assert "Spearman -1.000" in result.stdout
    record = json.loads((tmp_path / "out" / "correlation.json").read_text())
    assert record["scorers"] == ["brightness", "darkness"]
    assert record["pearson"]["value"] == pytest.approx(-1)
    with pytest.raises(UsageError, match="given 1 times"):
        run("correlate", file, "--scorer", "brightness")
