"""Run folders without a model: one flat colour a candidate, and scores that are given.

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
from sp_rerank.run.layout import CONFIG as CONFIG_FILE
from sp_rerank.run.layout import MANIFEST
from sp_rerank.run.records import Row, Stage, encode_config

CONFIG = {
    "prompt": "a lemon on the beach", "negative_prompt": "", "model": "mini", "steps": 16, "guidance_scale": 2.5,
    "scheduler": "PNDMScheduler", "seed": 40, "search": "exhaustive",
}  # fmt: skip


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
    stages: Callable[[int], Sequence[Stage]] = lambda index: (),
    size: tuple[int, int] = (24, 24),
    **config: Any,
) -> RunDir:
    """A run of as many candidates as there are scores; `n` more would make it complete."""
    made = max(map(len, scores.values())) if scores else n or 0
    total = n or made
    (folder / "images").mkdir(parents=True)
    (folder / CONFIG_FILE).write_bytes(encode_config({**CONFIG, "scorers": list(scores), "n": total, **config}))
    lines = []
    for index in range(made):
        own = {name: math.nan if values[index] is None else values[index] for name, values in scores.items()}
        seen = tuple(stages(index))
        spent = sum(stage.nfe for stage in seen) + (0 if status(index) == "dropped" else 17)
        row = Row.of(
            png(index, size), index=index, seed=40 + index, status=status(index), scores=own,
            nfe=spent, batch_size=2, stages=seen,
        )  # fmt: skip
        (folder / row.file).write_bytes(png(index, size))
        lines.append(row.to_line())
    (folder / MANIFEST).write_bytes(b"".join(lines))
    return RunDir.read(folder)
