"""How far a run is, on a terminal or in a notebook; nothing where there is neither. Knows no run and no scorer."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from sp_rerank.types import Progress

EVERY = 0.5  # seconds between two lines in a notebook


def shown(
    progress: Callable[[Progress], None] | bool, n: int
) -> AbstractContextManager[Callable[[Progress], None] | None]:
    """What is called as a run of n candidates goes on: the caller's own function, a bar for True, or None."""
    if isinstance(progress, bool):
        return run_progress(n) if progress else nullcontext()
    return nullcontext(progress)


@contextmanager
def run_progress(n: int) -> Iterator[Callable[[Progress], None]]:
    """One bar of a run of n candidates: how many, how fast, how good so far.

    A notebook gets a line of text that replaces itself, which needs no widgets.
    """
    if in_notebook():
        with _line() as line:
            yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    texts = [TextColumn(f"{{task.{what}}}") for what in ("fields[done]", "total", "fields[rate]", "fields[best]")]
    screen = Console(stderr=True, highlight=False, emoji=False, force_jupyter=False)
    began = time.monotonic()
    with Bar(
        texts[0], BarColumn(), texts[1], texts[2], TimeRemainingColumn(), texts[3],
        console=screen, transient=True, disable=not screen.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=n, done=0, rate="", best="")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                completed=reached(progress),
                total=progress.total,
                done=progress.done,
                rate=_rate(progress, began),
                best=_best(progress),
            )

        yield show


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def reached(progress: Progress) -> float:
    """Candidates that are scored, and what is done of those in hand; no more than there will be."""
    return min(progress.total, progress.done + progress.in_hand)


@contextmanager
def _line() -> Iterator[Callable[[Progress], None]]:
    began, last = time.monotonic(), -math.inf

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY and progress.done < progress.total:
            return
        last = now
        parts = [f"{reached(progress):.0f} of {progress.total}", _rate(progress, began), _best(progress)]
        sys.stderr.write("\r" + ", ".join(filter(None, parts)).ljust(72))
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r" + " " * 72 + "\r")


def _rate(progress: Progress, began: float) -> str:
    seconds = time.monotonic() - began
    return f"{(progress.made + progress.in_hand) / seconds:.1f} images/s" if seconds > 0 else ""


def _best(progress: Progress) -> str:
    return progress.stage or ("" if math.isnan(progress.best) else f"best {progress.best:.4f}")
