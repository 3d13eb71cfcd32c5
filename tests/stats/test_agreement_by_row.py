"""All rows at once give what the functions for one prompt give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sp_rerank.stats import agreement, best_of_n, ranking
from sp_rerank.stats import agreement_by_row as by_row

KS = (1, 4, 10)


@pytest.mark.parametrize("ties", [False, True])
def test_the_figures_are_those_of_single_prompts(monkeypatch, ties):
    monkeypatch.setattr(by_row, "PAIRS_AT_ONCE", 300)  # several parts
    rng = np.random.default_rng(0)
    a = rng.random((7, 9))
    b = 0.5 * a + 0.5 * rng.random((7, 9))
    if ties:
        a, b = a.round(1), b.round(1)
    found = by_row.agreement_by_row(a, b, KS)
    for row, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        assert found.kendall[row] == pytest.approx(agreement.kendall(x, y))
        assert found.spearman[row] == pytest.approx(agreement.spearman(x, y).value)
        for k in KS[:2]:
            assert found.overlap[k][row] == pytest.approx(agreement.top_k_overlap(x, y, k))
        for side, (picks, values) in enumerate(((x, y), (y, x))):
            assert found.rank_by[side][row] == ranking.order(values).index(ranking.top(picks, 1)[0]) + 1
            curve = best_of_n.expected_best(picks, values)
            assert found.normalized_gain[side][row] == pytest.approx((curve[-1] - curve[0]) / (max(values) - curve[0]))
    assert np.isnan(found.overlap[10]).all()


def test_what_is_not_defined_is_nan():
    found = by_row.agreement_by_row(np.array([[1.0, 1.0, 1.0]]), np.array([[1.0, 2.0, 3.0]]), KS)
    assert math.isnan(found.kendall[0]) and math.isnan(found.spearman[0])
    assert math.isnan(found.normalized_gain[1][0])  # the first scorer's mean candidate is its best
    assert found.normalized_gain[0][0] == 0  # its pick is any of them
