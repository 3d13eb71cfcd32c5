"""Run folders for tests: configurations, rows and files, without a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sp_rerank.config import RunConfig, SearchPlan
from sp_rerank.run.records import Row
from sp_rerank.run.summary import Ended, RunSummary


def run_config(n: int = 5, **changes: Any) -> RunConfig:
    """The configuration of a run of the mini model; `changes` are fields of `RunConfig`, the search also as JSON."""
    values: dict[str, Any] = {
        "prompt": "a lemon", "model": "mini", "scheduler": "PNDMScheduler", "steps": 2, "guidance_scale": 2.5,
        "seed": 40, "batch_size": 2, "scorers": ("test",),
    }  # fmt: skip
    values |= changes
    if "search" in values and not isinstance(values["search"], SearchPlan):
        values["search"] = SearchPlan.from_json(values["search"])
    return RunConfig(n=n, **values)


def row_of(png: bytes, index: int, **changes: Any) -> Row:
    """The row of an image file; `changes` are fields of `Row`."""
    values: dict[str, Any] = {
        "seed": 40 + index, "status": "ok", "scores": {"test": index / 4}, "nfe": 3, "batch_size": 2,
    }  # fmt: skip
    return Row(**{**values, "index": index, "sha256": hashlib.sha256(png).hexdigest(), **changes})


def summary_of(*best: int, n: int = 5, by: Any = "complete", detail: str = "") -> RunSummary:
    """How a run ended that kept these candidates."""
    return RunSummary(
        best=best, tie_groups=(1,) * len(best), ended=Ended(by, detail), n=n, made=n, nfe=3 * n, nfe_exhaustive=3 * n,
        flagged=0, nonfinite=0, dropped=0,
    )  # fmt: skip


def files_of(folder: Path, *, without: tuple[str, ...] = (".lock",)) -> dict[str, bytes]:
    """Every file of a folder with its bytes, by its path from there; some are left out."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in without}
