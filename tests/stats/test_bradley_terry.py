"""The posterior of Bradley and Terry's model: against integrals, against a known truth, and what evidence compares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit

from sp_rerank.stats.bradley_terry import posterior


def test_one_number_is_what_integration_says():
    gaps, labels = np.array([[1.0], [1.0], [2.0]]), np.array([1.0, 0.5, 0.0])

    def density(w):
        likelihood = np.prod([
            expit(w * g) ** y * expit(-w * g) ** (1 - y) for (g,), y in zip(gaps, labels, strict=True)
        ])
        return likelihood * np.exp(-0.5 * (w - 0.3) ** 2 / 0.5) / np.sqrt(2 * np.pi * 0.5)

    whole = quad(density, -8, 8)[0]
    mean = quad(lambda w: w * density(w), -8, 8)[0] / whole
    variance = quad(lambda w: (w - mean) ** 2 * density(w), -8, 8)[0] / whole
    found = posterior(gaps, labels, mean=0.3, variance=0.5)
    assert found.mean[0] == pytest.approx(mean, abs=0.05)
    assert found.covariance[0, 0] == pytest.approx(variance, rel=0.1)
    assert found.log_evidence == pytest.approx(np.log(whole), abs=0.02)


def test_without_answers_it_is_the_prior():
    found = posterior(np.zeros((0, 2)), [], mean=[1.0, -1.0], variance=[4.0, 9.0])
    assert found.mean.tolist() == [1.0, -1.0]
    assert found.covariance.tolist() == [[4.0, 0.0], [0.0, 9.0]]
    assert found.log_evidence == pytest.approx(0.0)


def test_many_answers_find_the_weights():
    rng = np.random.default_rng(0)
    truth = np.array([1.5, -0.5, 0.0])
    gaps = rng.normal(size=(4000, 3))
    labels = (rng.random(4000) < expit(gaps @ truth)).astype(float)
    found = posterior(gaps, labels, variance=100.0)
    assert found.mean == pytest.approx(truth, abs=0.15)
    inside = np.abs(found.mean - truth) < 2.5 * np.sqrt(np.diag(found.covariance))
    assert inside.all()


def test_a_tie_draws_two_things_together_and_says_more_than_nothing():
    gaps = [[1.0, -1.0]]
    tied = posterior(gaps * 4, [0.5] * 4, mean=[1.0, 0.0])
    assert tied.mean[0] - tied.mean[1] < 0.8
    assert tied.covariance[0, 1] > 0.1


def test_a_weight_counts_as_so_many_answers():
    three = posterior([[1.0], [1.0], [1.0]], [1, 1, 1])
    weighed = posterior([[1.0]], [1], weights=3.0)
    assert weighed.mean == pytest.approx(three.mean)
    assert weighed.covariance == pytest.approx(three.covariance)


def test_evidence_prefers_the_prior_that_expects_the_answers():
    gaps, labels = [[1.0]] * 6, [1.0] * 6
    right, wrong = (posterior(gaps, labels, mean=mean, variance=0.25).log_evidence for mean in (2.0, -2.0))
    assert right > wrong + 3


def test_extreme_answers_stay_finite():
    found = posterior([[1e3, -1e3]] * 500, [1.0] * 500, variance=1e6)
    assert np.isfinite(found.mean).all() and np.isfinite(found.covariance).all() and np.isfinite(found.log_evidence)


@pytest.mark.parametrize("labels", [[1.0], [[1.0, 0.0]]])
def test_shapes_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match="k gaps of d numbers"):
        posterior([[1.0], [2.0]], labels)
