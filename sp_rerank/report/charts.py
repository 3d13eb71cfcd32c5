"""Pure: scores in, the geometry of small charts out, for the SVG in charts.html.

Knows numbers and a frame. Knows nothing of pages, runs or what a score means. All coordinates are in the units of one
view box, WIDTH x HEIGHT, from its upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 14, 196
BINS = 24  # at most, of a histogram
NAME, LINE = 62, 13  # room for the name of a series beside the frame, width and height

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values along a side of the frame.

    Attributes:
        low: the value at `start`.
        high: the value at `end`; above `low`.
        start: coordinate.
        end: coordinate.
        ticks: round values within the range: (coordinate, text) each.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """The coordinate of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


@dataclass(frozen=True, slots=True)
class Chart:
    """What a chart draws.

    Attributes:
        x: horizontal axis.
        y: vertical axis.
        paths: SVG path data, one a series.
        marks: single points to be named: (x, y) coordinates each.
        names: base lines of the names of all series but the first, to the right of where each ends.
    """

    x: Axis
    y: Axis
    paths: tuple[str, ...]
    marks: tuple[tuple[float, float], ...] = ()
    names: tuple[float, ...] = ()


def histogram(scores: Sequence[float]) -> Chart:
    """How often which score; the mark is the best one.

    Args:
        scores: finite as float32, at least one.
    """
    x = _axis(min(scores), max(scores), LEFT, RIGHT)
    bins = min(BINS, max(6, math.isqrt(len(scores)) * 2))
    counts = [0] * bins
    for score in scores:
        counts[min(bins - 1, int((score - x.low) / (x.high - x.low) * bins))] += 1
    y = _axis(0, max(counts), BOTTOM, TOP, whole=True)
    width = (RIGHT - LEFT) / bins
    bars = [
        f"M{LEFT + place * width + 0.5:.1f} {BOTTOM}V{y.place(count)}h{width - 1:.1f}V{BOTTOM}z"
        for place, count in enumerate(counts)
        if count
    ]
    return Chart(x, y, ("".join(bars),), ((x.place(max(scores)), BOTTOM),))


def scatter(points: Points, marked: Points) -> Chart:
    """One scorer's score against another's.

    Args:
        points: finite as float32, at least one.
        marked: those of them that are to be named.
    """
    x = _axis(*_range([a for a, _ in points]), LEFT, RIGHT)
    y = _axis(*_range([b for _, b in points]), BOTTOM, TOP)
    dots = "".join(f"M{x.place(a)} {y.place(b)}h0" for a, b in points)
    return Chart(x, y, (dots,), tuple((x.place(a), y.place(b)) for a, b in marked))


def curves(series: Sequence[Sequence[float]], reached: int) -> Chart:
    """Values for n = 1, 2, .. along a logarithmic axis, for each doubling of n costs as much as all before it.

    Args:
        series: finite values, all series of one length.
        reached: the n that is marked on the first series, from 1.
    """
    n = len(series[0])
    x = _logarithmic(n, RIGHT - NAME if len(series) > 1 else RIGHT)
    y = _axis(min(map(min, series)), max(map(max, series)), BOTTOM, TOP)
    paths = tuple(
        "M" + "L".join(f"{x.place(math.log2(k))} {y.place(values[k - 1])}" for k in _drawn(n)) for values in series
    )
    mark = (x.place(math.log2(reached)), y.place(series[0][reached - 1]))
    return Chart(x, y, paths, (mark,), tuple(apart([y.place(values[-1]) + 4 for values in series[1:]])))


def apart(heights: Sequence[float], least: float = LINE) -> list[float]:
    """Base lines of texts near `heights`, within the frame and at least so far from each other."""
    places = [0.0] * len(heights)
    above = math.inf
    for place in sorted(range(len(heights)), key=lambda i: -heights[i]):  # from the lowest upwards
        above = places[place] = round(min(heights[place], above - least, BOTTOM - 4), 1)
    lift = max(0.0, TOP + 10 - min(places, default=math.inf))
    return [place + lift for place in places]


def _drawn(n: int) -> list[int]:
    """Of 1..n, as many as can be told apart on a logarithmic axis."""
    return sorted({min(n, round(2 ** (step / 8))) for step in range(math.ceil(math.log2(n)) * 8 + 1)})


def _logarithmic(n: int, end: float) -> Axis:
    high = math.log2(n) or 1
    shown = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if k <= n]
    if n >= 1.5 * shown[-1]:
        shown.append(n)
    axis = Axis(0, high, LEFT, end, ())
    return Axis(0, high, LEFT, end, tuple((axis.place(math.log2(k)), str(k)) for k in shown))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest, with room for a dot."""
    low, high = min(values), max(values)
    return low - (high - low) / 30, high + (high - low) / 30


def _axis(low: float, high: float, start: float, end: float, *, whole: bool = False) -> Axis:
    """An axis with about four round ticks; around a single value, wide enough for ticks to differ."""
    largest = max(abs(low), abs(high))
    if high - low <= max(largest * 1e-9, 1e-300):
        low, high = low - max(0.5, largest / 1000), high + max(0.5, largest / 1000)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.8)
    step = max(step, 1) if whole else step
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    form = f".{digits}f" if 1e-5 < step < 1e6 else ".9g"
    bare = Axis(low, high, start, end, ())
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple((bare.place(k * step), f"{k * step:{form}}") for k in range(first, last + 1))
    return Axis(low, high, start, end, ticks)
