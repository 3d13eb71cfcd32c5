"""Run folders without a model: one flat color a candidate, and scores that are given.

They are not synced to the disk as `RunWriter` does it: a thousand images would take seconds.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from sp_rerank.run.folder import RunDir
from sp_rerank.run.layout import CONFIG, MANIFEST
from sp_rerank.run.records import StageScore, encode_config
from support.runs import row_of, run_config


@cache
def png(index: int, size: tuple[int, int] = (24, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (index * 37 % 256, index * 91 % 256, index * 53 % 256)).save(file, "PNG")
    return file.getvalue()


def make_run(
    folder: Path,
    scores: dict[str, Sequence[float | None]],
    *,
    n: int | None = None,
    status: Callable[[int], Any] = lambda index: "ok",
    stages: Callable[[int], Sequence[StageScore]] = lambda index: (),
    size: tuple[int, int] = (24, 24),
    **config: Any,
) -> RunDir:
    """A run of as many candidates as there are scores; `n` more would make it complete."""
    made = max(map(len, scores.values())) if scores else n or 0
    total = n or made
    (folder / "images").mkdir(parents=True)
    described = run_config(**{
        "n": total,
        "prompt": "a lemon on the beach",
        "steps": 16,
        "scorers": tuple(scores),
        **config,
    })
    (folder / CONFIG).write_bytes(encode_config(described))
    lines = []
    for index in range(made):
        own = {name: _finite(values[index]) for name, values in scores.items()}
        seen = tuple(stages(index))
        spent = sum(stage.nfe for stage in seen) + (0 if status(index) == "dropped" else 17)
        row = row_of(png(index, size), index, status=status(index), scores=own, nfe=spent, stages=seen)
        (folder / row.file).write_bytes(png(index, size))
        lines.append(row.to_line())
    (folder / MANIFEST).write_bytes(b"".join(lines))
    return RunDir.read(folder)


def _finite(score: float | None) -> float | None:
    return None if score is None or not math.isfinite(score) else float(score)
