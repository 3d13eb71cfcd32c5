"""How results are written: JSON for programs, Markdown tables, SVG plots. Knows nothing of what they say."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from sp_rerank.errors import UsageError
from sp_rerank.stats.agreement import Estimate
from sp_rerank.stats.ranking import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def to_json(value: Any) -> Any:
    """A result as JSON can hold it: dataclasses as objects, what is not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: to_json(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, dict):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    return finite(value) if isinstance(value, float) else value


def percent(estimate: Estimate) -> str:
    """For example "66.8 [65.4, 68.1]"; empty where the figure is not defined."""
    if math.isnan(estimate.value):
        return ""
    interval = "" if math.isnan(estimate.low) else f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.value:.1f}{interval}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in line)} |\n" for line in lines
    )


def markdown_text(text: str) -> str:
    """A text of others for Markdown: one line that is shown as it stands, neither markup nor HTML nor a link."""
    line = " ".join(plain(text).split())
    return re.sub(r"[^\w ,()'/-]|_", lambda found: f"&#{ord(found[0])};", line)


def new_figure() -> Figure:
    """An empty plot.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install sp-rerank[train]") from error
    return Figure(figsize=(6, 5), layout="constrained")


def plain(text: str) -> str:
    """A text of others for a plot: one line without control characters, which SVG cannot hold.

    Draw it with `parse_math=False`; a `$` would begin mathematics otherwise.
    """
    return "".join(character if character.isprintable() else " " for character in text)


def add_legend(axes: Axes, names: Sequence[str], title: str) -> None:
    """Name the lines of a plot, in the order of their labels, which are not shown: names are shown as they stand."""
    legend = axes.legend(title=title)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(plain(name))


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG; equal figures give equal bytes."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "sp-rerank", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
