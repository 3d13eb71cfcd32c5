"""The figures of a training run: a row a step, into metrics.jsonl always, to a tracker of accelerate where asked for.

A tracker is a program of others and perhaps a network away: where it fails, training goes on without it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from sp_rerank.errors import UsageError
from sp_rerank.storage import atomic
from sp_rerank.train.distributed import device
from sp_rerank.train.losses import effective_sample_size

log = logging.getLogger(__name__)

NONE = "none"

PROJECT = "sp-rerank"
"""What a tracker calls all our runs together."""

PACKAGES = {"tensorboard": "sp-rerank[train]", "comet_ml": "comet-ml"}
"""What installs a tracker, where that is not its name."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What a step was like, over the global batch.

    Attributes:
        step: counted from 1.
        stage: 1 or 2; 0 where there are no stages.
        loss: as the recipe weighs it.
        preference: Mean of L_pref, not weighted.
        interference: Mean of L_ai, not weighted.
        accuracy: share of the strict pairs in the right order; None if all are ties.
        gate: Mean of stage 1's gate; None in other stages.
        effective: how many pairs carry the batch, (sum w)^2 / sum w^2.
        pairs: Number of pairs.
        gradient_share: of L_pref, in the norms of the two terms' gradients to the embeddings; L_ai has the rest. NaN
            where both are 0, as when every gate is shut.
        gradient_norm: Norm of the gradient to the weights.
        learning_rate: Learning rate of the step.
        logit_scale: exp of the parameter, after the step.
        seconds: that the step took, without waiting for its images.
        left_out: Whether it was skipped as not finite.
    """

    step: int
    stage: int
    loss: float
    preference: float
    interference: float
    accuracy: float | None
    gate: float | None
    effective: float
    pairs: int
    gradient_share: float
    gradient_norm: float
    learning_rate: float
    logit_scale: float
    seconds: float
    left_out: bool

    @classmethod
    def of(
        cls, *, stage: int, global_batch: Tensor, weights: Tensor, loss: Tensor, norms: Tensor, gradient: Tensor,
        logit_scale: Tensor, **rest: Any,
    ) -> StepMetrics:  # fmt: skip
        """From the global batch.

        Args:
            stage: 0, 1 or 2.
            global_batch: (q, 4) gap, label, L_pref and L_ai of each pair.
            weights: (q,) of each pair in the loss.
            loss: ().
            norms: (2,) of the gradients of both terms.
            gradient: () norm.
            logit_scale: () the parameter, a logarithm.
            **rest: as they are.
        """
        gap, label = global_batch[:, 0], global_batch[:, 1]
        strict = label != 0.5
        # a predicted tie is wrong
        right = (gap != 0) & ((gap > 0) == (label > 0.5))
        return cls(
            stage=stage,
            loss=loss.item(),
            preference=global_batch[:, 2].mean().item(),
            interference=global_batch[:, 3].mean().item(),
            accuracy=right[strict].double().mean().item() if strict.any() else None,
            gate=weights.sum().item() if stage == 1 else None,
            effective=effective_sample_size(weights).item() if len(weights) else 0.0,
            pairs=len(global_batch),
            gradient_share=(norms[0] / norms.sum()).item(),
            gradient_norm=gradient.item(),
            logit_scale=logit_scale.detach().exp().item(),
            **rest,
        )

    def figures(self) -> dict[str, Any]:
        """Plain values that JSON can hold: what is not finite is None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


class Tracker:
    """Writes rows; used as a context.

    Args:
        out: folder of the run.
        kind: A tracker of accelerate by its name, such as "tensorboard", "wandb", "trackio" or "mlflow"; or "none".
        step: from which the run goes on; rows after it, of an interrupted try, are dropped.
        writes: Whether this process is the one that writes.
        recipe: What the tracker is told of the run.

    Raises:
        UsageError: if the tracker is another, is not installed, or cannot begin.
    """

    def __init__(self, out: Path, kind: str, step: int, writes: bool, recipe: Mapping[str, Any]):
        check_tracker(kind)
        self._out, self._step, self._writes = out, step, writes
        self._trackers = _start(out, kind, step, recipe) if kind != NONE and writes else []
        self._file: Any = None

    def __enter__(self) -> Self:
        if self._writes:
            path = self._out / "metrics.jsonl"
            atomic.write(path, b"".join(_rows_until(path, self._step)))
            self._file = path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        for tracker in list(self._trackers):
            self._forgiving(tracker, tracker.finish)

    def write(self, figures: dict[str, Any]) -> None:
        """Write a row: a "step" and what was measured there."""
        if self._file is None:
            return
        with atomic.storage_errors(self._out):
            self._file.write(json.dumps(figures, allow_nan=False) + "\n")
            self._file.flush()
        values = {name: value for name, value in figures.items() if name != "step" and value is not None}
        for tracker in list(self._trackers):
            self._forgiving(tracker, lambda tracker=tracker: tracker.log(values, step=figures["step"]))

    def _forgiving(self, tracker: Any, work: Callable[[], None]) -> None:
        """Do what may fail; a tracker that failed is not asked again."""
        try:
            work()
        except Exception as error:  # whatever a program of others raises
            self._trackers = [other for other in self._trackers if other is not tracker]
            log.warning("the tracker %s failed, training goes on without it: %s", tracker.name, _line(error))


def _rows_until(path: Path, step: int) -> list[bytes]:
    """The lines up to a step; none for a run that begins, and not the torn end of one that was killed."""
    if step == 0 or not path.exists():
        return []
    with atomic.storage_errors(path):
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    steps = [_step_of(line) for line in lines]
    if None in steps:
        log.warning("%s: %d damaged lines are dropped", path, steps.count(None))
    return [line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step]


def _step_of(line: bytes) -> int | None:
    """The step of a row, None where the line is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int else None


def tracker_names() -> list[str]:
    """The trackers that accelerate knows, and none."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return [*sorted(map(str, LOGGER_TYPE_TO_CLASS)), NONE]


def check_tracker(kind: str) -> None:
    """Refuse a tracker that cannot be used here: before the work.

    Raises:
        UsageError: If there is none of this name, or it is not installed.
    """
    from accelerate.tracking import get_available_trackers

    if kind not in tracker_names():
        raise UsageError(f"expected a tracker out of {', '.join(tracker_names())}, got {kind!r}")
    if kind != NONE and kind not in map(str, get_available_trackers()):
        package = PACKAGES.get(kind, kind)
        raise UsageError(f"the tracker {kind!r} is not installed; run `pip install {package!r}`, or take {NONE!r}")


def _start(out: Path, kind: str, step: int, recipe: Mapping[str, Any]) -> list[Any]:
    """The tracker, begun; a run that goes on is the same run to one that can continue it.

    Raises:
        UsageError: If it cannot begin, as without an account.
    """
    from accelerate import Accelerator

    run = atomic.sha256_of(json.dumps([str(out.resolve()), dict(recipe)], sort_keys=True).encode())[:16]
    how: dict[str, Any] = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": out.name, "dir": str(out), "id": run, "resume": "allow"},
        "trackio": {"name": out.name, "resume": "allow"},
        "mlflow": {"run_name": out.name},
    }
    project = kind if kind == "tensorboard" else PROJECT  # of tensorboard it is the folder
    try:
        accelerator = Accelerator(cpu=device().type == "cpu", log_with=kind, project_dir=out)
        accelerator.init_trackers(project, config=dict(recipe), init_kwargs={kind: how.get(kind, {})})
    except Exception as error:  # whatever a program of others raises
        raise UsageError(f"the tracker {kind!r} cannot begin: {_line(error)}; or take {NONE!r}") from error
    return list(accelerator.trackers)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
