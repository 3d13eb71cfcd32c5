"""Batches for tests, written by the code that writes them, without a model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sp_rerank.batch.batch_config import BatchConfig, without_prompt
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.prompts import rows_of
from sp_rerank.batch.units import Unit, encode, key_of
from sp_rerank.run.records import Row
from support.runs import run_config, summary_of


def write_units(folder: Path, prompts: Sequence[str], n: int) -> Ledger:
    """A batch of these prompts with n candidates each: scores of two scorers that agree a little, the best's image."""
    ledger, rng, config = Ledger(folder), np.random.default_rng(0), run_config(n, scorers=("first", "second"))
    ledger.join(BatchConfig(without_prompt(config), 1, False, False, "top", "png", 1))
    rows = list(rows_of(prompts))
    ledger.add_prompts(rows)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(file, "PNG")
    for row in rows:
        first = rng.random(n)
        scores = np.stack([first, 0.5 * first + 0.5 * rng.random(n)], 1).tolist()
        made = [
            Row(i, i, "ok", dict(zip(("first", "second"), pair, strict=True)), "0" * 64, 3, 2)
            for i, pair in enumerate(scores)
        ]
        best = int(first.argmax())
        unit = Unit(
            row, "ok", config, made, dict(enumerate(first.tolist())), summary_of(best, n=n), {best: file.getvalue()},
            "cpu",
        )  # fmt: skip
        path = folder / key_of(row.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(unit))  # as the store does, without waiting for the disk
    return ledger
