"""The temperature of score gaps, against simulated people, a numerical optimum and counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from support.scorings import FINITE, paired

from sp_rerank.stats.calibration import TOLD_APART, calibrate, margin, preferred


def pairs_of(temperature, n, seed=0):
    rng = np.random.default_rng(seed)
    gaps = rng.normal(size=n)
    return gaps, (rng.random(n) < 1 / (1 + np.exp(-gaps / temperature))).astype(float)


def test_the_temperature_of_simulated_people_is_found():
    calibration = calibrate(*pairs_of(0.5, 20_000))
    assert calibration.temperature == pytest.approx(0.5, rel=0.05)
    assert calibration.error < 0.02
    assert sum(part.n for part in calibration.bins) == 20_000


@given(paired(FINITE, smallest=2), st.data())
@settings(max_examples=50)
def test_the_temperature_is_the_most_likely_one(scores, data):
    gaps = np.subtract(*scores)
    labels = np.array(data.draw(st.lists(st.sampled_from([0, 0.5, 1]), min_size=len(gaps), max_size=len(gaps))))

    def loss(steepness):
        return np.mean(np.logaddexp(0, gaps * steepness) - labels * gaps * steepness)

    found = calibrate(gaps, labels)
    assert found == calibrate(-gaps, 1 - labels)
    best = optimize.minimize_scalar(loss, bounds=(0, 60), method="bounded").fun
    if math.isnan(found.temperature):
        assert not gaps.any()
    else:
        steepness = 60 if found.temperature == 0 else 1 / found.temperature
        assert loss(steepness) <= best + 1e-6


def test_calibration_by_hand():
    # Gaps of 1, three of four in the right order: P = 3/4, T = 1 / log 3, and nothing is left to err.
    calibration = calibrate([1, 1, -1, 1], [1, 1, 0, 0])
    assert calibration.temperature == pytest.approx(1 / math.log(3))
    assert calibration.error == pytest.approx(0, abs=1e-9)
    assert [(b.predicted, b.observed, b.n) for b in calibration.bins] == [(pytest.approx(0.75), 0.75, 4)]


def test_calibration_at_its_ends():
    assert calibrate([1, 2], [1, 1]).temperature == 0
    assert calibrate([1, 2], [1, 1]).error == 0
    backwards = calibrate([1, 2], [0, 0])
    assert (backwards.temperature, backwards.error) == (math.inf, 0.5)
    constant = calibrate([0, 0, 0], [1, 0, 0.5])
    assert math.isnan(constant.temperature)
    assert constant.error == 0
    assert calibrate([math.nan, math.inf], [1, 0]).bins == ()


def test_the_margin_is_where_two_of_three_people_agree():
    assert preferred(margin(0.5), 0.5) == pytest.approx(TOLD_APART)
    assert margin(0.5) == pytest.approx(0.5 * math.log(2))
    assert preferred(0, 0.5) == 0.5
    assert preferred(-1, 0.5) == pytest.approx(1 - preferred(1, 0.5))


def test_a_temperature_of_zero_is_sure_of_every_gap():
    assert [preferred(gap, 0) for gap in (-1, 0, 1)] == [0, 0.5, 1]
    assert margin(0) == 0
