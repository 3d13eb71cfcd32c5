"""The training loop: one process or several, resumable to the bit, the best validation step kept.

    OUT/training.json    schema, recipe, hashes of the data, what it started from
    OUT/metrics.jsonl    one line a step, one a validation
    OUT/checkpoints/     to resume from
    OUT/best/            the scorer of the best validation step, `sp@OUT/best`
    OUT/last/            the scorer of the last step

Several processes (accelerate launch) each encode a part of every step's pairs, see the gaps of all of them and add
their gradients up after the backward pass: the losses are those of one process. Knows nothing of files of preferences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from sp_rerank.errors import NothingUsableError, StorageError
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.scoring import score_images
from sp_rerank.storage.atomic import locked, recover_folder, replace_folder
from sp_rerank.train import checkpoints
from sp_rerank.train.data import Loader, PairOrder, Perturbations
from sp_rerank.train.distributed import any_process, current, device, leave_together, summed
from sp_rerank.train.metrics import StepMetrics, Tracker, check_tracker
from sp_rerank.train.model import freeze
from sp_rerank.train.preferences import ImageReader, PreferenceGroup
from sp_rerank.train.recipe import Recipe
from sp_rerank.train.step import TrainStep

_MOST_STEPS = 10_000_000  # as in `recipe`


@dataclass(slots=True)
class TrainingState:
    """How far a run is; what a checkpoint holds besides tensors."""

    step: int = 0
    failures: int = 0
    first_accuracy: float | None = None
    best_step: int | None = None
    best_accuracy: float | None = None

    @classmethod
    def from_json(cls, stored: Any) -> TrainingState:
        """What a checkpoint holds, checked.

        Raises:
            StorageError: if it is no such state.
        """
        kinds: dict[str, Callable[[Any], bool]] = {
            "step": _is_count,
            "failures": _is_count,
            "first_accuracy": _is_accuracy,
            "best_step": lambda value: value is None or _is_count(value),
            "best_accuracy": _is_accuracy,
        }
        whole = isinstance(stored, dict) and set(stored) == set(kinds)
        if not whole or not all(kinds[name](value) for name, value in stored.items()):
            raise StorageError("the checkpoint holds no state of a training run; begin anew in another folder")
        return cls(**stored)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_STEPS


def _is_accuracy(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run gives.

    Attributes:
        folder: of the scorer to use: the best validation step's, or the last one's where nothing was validated.
        steps: that were made.
        first_accuracy: of the scorer that it started from, on the validation pairs; None without any.
        best_step: Step with the best accuracy.
        best_accuracy: Accuracy at that step.
        skipped: Number of images that could not be read, by this process since it was started.
    """

    folder: Path
    steps: int
    first_accuracy: float | None
    best_step: int | None
    best_accuracy: float | None
    skipped: int


def train(
    recipe: Recipe,
    groups: Sequence[PreferenceGroup],
    *,
    scorer: DualEncoder,
    out: Path,
    validation: Sequence[PreferenceGroup] = (),
    resume: bool = False,
    tracker: str = "none",
    progress: Callable[[StepMetrics], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train a scorer in place and write it to a folder.

    Args:
        recipe: How to train.
        groups: Groups to learn from.
        scorer: Scorer to start from, in float32.
        out: folder of the run; new or empty, or with `resume` that of a run with the same recipe and data.
        validation: Groups to choose the best step by; none keeps the last one only.
        resume: go on from the last checkpoint, to the same weights as without the interruption.
        tracker: A tracker of accelerate by its name, or "none"; metrics.jsonl is always written.
        progress: Called with the figures of each step, in the main process.
        stop: asked after each step; if it says yes a checkpoint is written.

    Raises:
        UsageError: if the folder holds something else, or a run with another recipe or other data.
        FolderBusyError: if another process writes to it.
        NothingUsableError: if too many images cannot be read, or the loss stays not finite.
        StorageError: if something cannot be written, or the checkpoints are damaged.
        KeyboardInterrupt: after `stop`.
    """
    check_tracker(tracker)
    processes = current()
    identity = {
        "schema": checkpoints.SCHEMA,
        "recipe": asdict(recipe),
        "base": scorer.name,
        "data": checkpoints.data_sha256(groups),
        "validation": checkpoints.data_sha256(validation),
    }
    checkpoints.check_folder(out, identity, resume)
    processes.wait_for_everyone()
    with locked(out) if processes.is_main_process else nullcontext():
        if processes.is_main_process:
            checkpoints.begin(out, identity)
        processes.wait_for_everyone()
        trainer = _Trainer(recipe, groups, validation, scorer, out, identity, processes)
        with Tracker(out, tracker, trainer.state.step, processes.is_main_process, identity["recipe"]) as tracked:
            outcome = trainer.run(tracked, progress, stop)
    leave_together()
    return outcome


@torch.no_grad()
def validate(
    scorer: DualEncoder, groups: Sequence[PreferenceGroup], share: tuple[int, int] = (0, 1)
) -> tuple[int, int]:
    """How many strict pairs the scorer orders rightly, and of how many; a predicted tie is wrong, and so is a pair
    with a score that is not finite.

    Args:
        scorer: Scorer in evaluation mode.
        groups: Groups with their pairs; images that cannot be read are left out.
        share: (index of this process, number of processes): it takes every so many-th group.
    """
    right = total = 0
    reader = ImageReader()
    for group in groups[share[0] :: share[1]]:
        opened = {i: image for i, source in enumerate(group.images) if (image := reader.read(source)) is not None}
        scores = dict(zip(opened, score_images(scorer, group.prompt, list(opened.values())), strict=True))
        for pair in group.pairs:
            if pair.label != 0.5 and pair.first in scores and pair.second in scores:
                gap = scores[pair.first] - scores[pair.second]
                right += gap > 0 if pair.label > 0.5 else gap < 0
                total += 1
    return right, total


class _Trainer:
    """The state of a run: weights, optimizer, how far it is."""

    def __init__(
        self,
        recipe: Recipe,
        groups: Sequence[PreferenceGroup],
        validation: Sequence[PreferenceGroup],
        scorer: DualEncoder,
        out: Path,
        identity: dict[str, Any],
        processes: PartialState,
    ):
        self._recipe, self._validation, self._out, self._identity = recipe, validation, out, identity
        self._processes = processes
        self._share = (processes.process_index, processes.num_processes)
        self._scorer = scorer
        scorer.float()
        scorer.to(device()).train()  # pyright: ignore[reportArgumentType]  # diffusers' `to` is not annotated as torch's
        freeze(scorer, recipe.trainable_image_blocks, recipe.trainable_text_blocks)
        scorer.clip.set_grad_checkpointing(recipe.gradient_checkpointing)
        self._train_step = TrainStep(recipe, scorer)
        self._reader = ImageReader(sum(len(group.images) for group in groups))
        self._loader = Loader(
            groups,
            PairOrder(
                groups,
                batch_size=recipe.batch_size,
                pairs_per_prompt=recipe.pairs_per_prompt,
                seed=recipe.seed,
                include_ties=recipe.include_ties,
            ),
            scorer,
            self._reader,
            Perturbations.of(recipe),
            self._share,
        )
        self.state = self._restore()

    def run(
        self, tracker: Tracker, progress: Callable[[StepMetrics], None] | None, stop: Callable[[], bool]
    ) -> Outcome:
        recipe, state = self._recipe, self.state
        for name in ("best", "last"):
            if self._processes.is_main_process:
                recover_folder(self._out / name)
        if state.step == 0 and self._validation and state.first_accuracy is None:
            state.first_accuracy = self._validated(tracker)
        for step, batch in self._loader.batches(state.step, recipe.steps):
            row = self._train_step(step, batch.to(device()))
            state.step, state.failures = step + 1, self._train_step.failures
            tracker.write(row.figures() | {"unreadable": len(self._reader.skipped)})
            if progress and self._processes.is_main_process:
                progress(row)
            last, stopping = state.step == recipe.steps, any_process(stop())
            improved = False
            if self._validation and (last or state.step % recipe.evaluate_every == 0):
                improved = self._keep_if_best(self._validated(tracker))
            # after a best one too: what best/ holds and what the checkpoint says of it go together
            if last or stopping or improved or state.step % recipe.save_every == 0:
                self._save()
            if stopping and not last:
                raise KeyboardInterrupt
        self._scorer.eval()
        if not (self._out / "last").exists():
            self._write_scorer("last")
        best = "last" if state.best_step is None else "best"
        return Outcome(
            self._out / best,
            state.step,
            state.first_accuracy,
            state.best_step,
            state.best_accuracy,
            len(self._reader.skipped),
        )

    def _validated(self, tracker: Tracker) -> float:
        self._scorer.eval()
        with self._train_step.autocast():
            counts = torch.tensor(validate(self._scorer, self._validation, self._share), device=device())
        self._scorer.train()
        right, total = summed(counts).tolist()
        if not total:
            raise NothingUsableError("the validation data have no pair with a better image that can be read; add some")
        tracker.write({"step": self.state.step, "validation_accuracy": right / total})
        return right / total

    def _keep_if_best(self, accuracy: float) -> bool:
        best = self.state.best_accuracy
        if best is not None and accuracy <= best:
            return False
        self.state.best_step, self.state.best_accuracy = self.state.step, accuracy
        self._write_scorer("best")
        return True

    def _write_scorer(self, name: str) -> None:
        recipe, identity = self._recipe, self._identity
        if self._processes.is_main_process:
            self._scorer.register_to_config(
                name=recipe.name,
                source=f"{identity['base']} trained with the recipe {recipe.name} (sha256 {recipe.sha256}) "
                f"on preferences (sha256 {identity['data']}), step {self.state.step}",
            )
            replace_folder(self._out / name, self._scorer.save_pretrained)
        self._processes.wait_for_everyone()

    def _save(self) -> None:
        if self._processes.is_main_process:
            tensors = {}
            for name, parameter in self._train_step.learning.items():
                tensors[f"weight/{name}"] = parameter
                for key, value in self._train_step.optimizer.state[parameter].items():
                    tensors[f"{key}/{name}"] = value
            checkpoints.save(self._out, self.state.step, tensors, asdict(self.state))
        self._processes.wait_for_everyone()

    def _restore(self) -> TrainingState:
        stored = checkpoints.load(self._out)
        if stored is None:
            return TrainingState()
        tensors, state = stored[0], TrainingState.from_json(stored[1])
        try:
            self._take_over(tensors)
        except (KeyError, RuntimeError) as error:
            raise StorageError(
                f"{self._out}: the checkpoint is of another scorer: {error}; begin anew in another folder"
            ) from error
        self._train_step.failures = state.failures
        return state

    def _take_over(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._train_step.learning.items():
                parameter.copy_(tensors.pop(f"weight/{name}"))
        for key, value in tensors.items():
            what, _, name = key.partition("/")
            # AdamW counts its steps on the CPU
            moved = value if what == "step" else value.to(device())
            self._train_step.optimizer.state[self._train_step.learning[name]][what] = moved
