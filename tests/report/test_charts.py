"""The geometry of the gallery's charts."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_rerank.report import charts

SCORES = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=40)


def numbers(path):
    return [float(number) for number in re.findall(r"-?[0-9.]+", path)]


@given(SCORES)
def test_a_histogram_counts_every_score_once(scores):
    chart = charts.histogram(scores)
    bars = re.findall(r"M([0-9.]+) 196V([0-9.-]+)h([0-9.-]+)V196z", chart.paths[0])
    unit = (charts.BOTTOM - charts.TOP) / (chart.y.high - chart.y.low)
    assert sum(round((charts.BOTTOM - float(top)) / unit) for _, top, _ in bars) == len(scores)
    assert all(charts.LEFT <= float(left) < float(left) + float(wide) <= charts.RIGHT for left, _, wide in bars)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=30))
def test_every_dot_is_in_the_frame(points):
    chart = charts.scatter(points, points[:1])
    places = numbers(chart.paths[0].replace("h0", " "))
    assert len(places) == 2 * len(points)
    assert all(charts.LEFT <= x <= charts.RIGHT for x in places[::2])
    assert all(charts.TOP <= y <= charts.BOTTOM for y in places[1::2])
    assert chart.marks == ((places[0], places[1]),)


@given(SCORES)
def test_ticks_are_round_few_and_rise(scores):
    axis = charts.scatter([(score, 0.0) for score in scores], []).x
    values = [float(text) for _, text in axis.ticks]
    assert 1 <= len(values) <= 7
    assert values == sorted(set(values))
    for place, text in axis.ticks:
        assert place == pytest.approx(axis.place(float(text)), abs=1)
        assert charts.LEFT - 0.1 <= place <= charts.RIGHT + 0.1


def test_a_curve_begins_at_the_mean_and_ends_at_the_best():
    chart = charts.curves([[0, 60, 90, 100.0]], reached=3)
    places = numbers(chart.paths[0].replace("L", " "))
    assert places[:2] == [charts.LEFT, charts.BOTTOM]
    assert places[-2:] == [charts.RIGHT, charts.TOP]
    assert chart.marks[0] == (chart.x.place(math.log2(3)), chart.y.place(90))
    assert [text for _, text in chart.x.ticks] == ["1", "2", "4"]


def test_a_curve_of_a_thousand_is_drawn_with_few_points():
    chart = charts.curves([[float(n) for n in range(1, 1001)]], reached=1)
    assert len(chart.paths[0]) < 1200
    assert chart.x.ticks[-1] == (charts.RIGHT, "1000")


@given(st.lists(st.floats(charts.TOP, charts.BOTTOM), max_size=6))
def test_names_at_the_end_do_not_cover_each_other(heights):
    places = sorted(charts.apart(heights))
    assert all(below - above >= charts.LINE - 0.11 for above, below in pairwise(places))
    assert all(place >= charts.TOP for place in places)
