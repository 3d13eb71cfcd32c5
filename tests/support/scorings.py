"""Two scorings of the same candidates, as hypothesis draws them, and how figures of them are compared."""

import math

import pytest
from hypothesis import strategies as st

# Few values, so that ties are common, and what is no score
SCORE = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan, math.inf, -math.inf])
FINITE = st.integers(-6, 6).map(lambda quarters: quarters / 4)


@st.composite
def paired(draw, value=SCORE, smallest=0):
    n = draw(st.integers(smallest, 9))
    return [draw(st.lists(value, min_size=n, max_size=n)) for _ in range(2)]


def usable(a, b):
    return [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]


def equal(value, expected):
    return value == pytest.approx(expected, abs=1e-9, nan_ok=True)
