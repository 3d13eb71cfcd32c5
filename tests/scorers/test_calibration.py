"""A scorer's calibration: kept beside its weights, and no other's."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sp_rerank import load_scorer, rank
from sp_rerank.errors import UsageError
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.calibration import ScorerCalibration, calibration_of, keep, margin_of
from sp_rerank.scorers.registry import known_folders
from sp_rerank.stats import calibration


@dataclass
class Weights(BrightnessScorer):
    """Brightness as if it had been loaded from a folder."""

    folder: Path
    name: str = "weights@1"


FITTED = calibration.calibrate([1, 1, -1, 1], [1, 1, 0, 0])  # temperature 1 / log 3


def test_a_calibration_is_found_where_it_was_kept(tmp_path):
    scorer = Weights(tmp_path)
    assert calibration_of(scorer) is None
    assert margin_of(scorer) == 0
    file = keep(scorer, FITTED, data="four pairs", simulated=True)
    assert file == tmp_path / "calibration.json"
    found = calibration_of(scorer)
    assert found == ScorerCalibration("weights@1", FITTED.temperature, "four pairs", 4, FITTED.error, True)
    assert margin_of(scorer) == found.margin
    assert keep(scorer, FITTED, data="four pairs") == file
    assert not calibration_of(scorer).simulated


def test_the_margin_and_the_probability_are_those_of_the_temperature():
    found = ScorerCalibration("x", 0.5, "d", 1, 0.0, False)
    assert found.margin == calibration.margin(0.5)
    assert found.preferred(0.3) == calibration.preferred(0.3, 0.5)


def test_a_calibration_of_other_weights_is_refused(tmp_path, caplog):
    keep(Weights(tmp_path), FITTED, data="d")
    with caplog.at_level(logging.WARNING):
        assert calibration_of(Weights(tmp_path, "weights@2")) is None
    assert "is of 'weights@1', not of weights@2" in caplog.text
    assert "--keep-calibration" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, "\xff", '{"scorer": "weights@1"}']
    + [json.dumps({"scorer": "weights@1", "temperature": t, "data": "d", "pairs": 4, "error": 0.1, "simulated": False})
       for t in (-1, "1", None, float("nan"), float("inf"), True, 10**400)]
    + [json.dumps({"scorer": "weights@1", "temperature": 1, "data": "d", "pairs": n, "error": 0.1, "simulated": False})
       for n in (-1, 10**400)],
)  # fmt: skip
def test_a_damaged_file_ends_what_asks_for_it(tmp_path, text):
    (tmp_path / "calibration.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"calibration\.json is no calibration: .*; remove it, or fit it anew"):
        calibration_of(Weights(tmp_path))


def test_a_damaged_file_of_a_scorer_that_is_not_loaded_is_warned_of(tmp_path, monkeypatch, caplog):
    (tmp_path / "calibration.json").write_text("{}")
    monkeypatch.setattr("sp_rerank.scorers.calibration.known_folders", lambda name: [tmp_path])
    with caplog.at_level(logging.WARNING):
        assert calibration_of("weights@1") is None
    assert "expected a value for 'scorer', found none" in caplog.text


def test_a_damaged_file_ends_a_ranking_before_an_image_is_scored(tmp_path):
    class Asked(Weights):
        def score(self, prompt, images):
            pytest.fail("asked")

    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(UsageError, match="no calibration"):
        rank(Asked(tmp_path), "x", [Image.new("RGB", (4, 4))])


def test_what_cannot_be_kept(tmp_path):
    with pytest.raises(UsageError, match="loaded from a folder of weights"):
        keep(BrightnessScorer(), FITTED, data="d")
    useless = calibration.calibrate([1, 2], [0, 0])
    with pytest.raises(UsageError, match="says nothing about what is preferred"):
        keep(Weights(tmp_path), useless, data="d")
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_scorer_is_calibrated_and_says_that_its_people_are_simulated():
    scorer = load_scorer("clip-mini")
    found = calibration_of(scorer)
    assert found is not None
    assert found.simulated
    assert found.pairs > 10_000
    assert found.error < 0.05
    assert calibration_of(scorer.name) == found  # without its weights
    assert calibration_of("clip-mini@000000000000") is None


def test_names_without_a_place_have_no_calibration():
    for name in ("brightness", "hps-v2.1@123", "sp@somewhere", "clip:ViT-B-32/openai@1", "../../etc/passwd"):
        assert calibration_of(name) is None
    assert known_folders("no such") == []


def test_images_that_nobody_tells_apart_tie_in_a_ranking(tmp_path):
    grays = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (0, 100, 110, 255)]
    assert [r.tie_group for r in rank(BrightnessScorer(), "x", grays)] == [1, 2, 3, 4]
    scorer = Weights(tmp_path)
    keep(scorer, calibration.calibrate([0.1, 0.1, -0.1, 0.1], [1, 1, 0, 0]), data="d")  # margin .063, 16 levels
    ranked = rank(scorer, "x", grays)
    assert [(r.candidate.index, r.tie_group) for r in ranked] == [(3, 1), (2, 2), (1, 2), (0, 3)]
