"""What a worker is told and what it tells: the models to load, the order, what became of a prompt. Knows no engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from sp_rerank.batch.batch_config import Keep
from sp_rerank.batch.units import ImageFormat
from sp_rerank.config import CheckpointOptions
from sp_rerank.diffusion.placement import device_of
from sp_rerank.errors import UsageError

if TYPE_CHECKING:
    from sp_rerank.types import Scorer


_PLAIN = CheckpointOptions()


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a batch in words, for workers to load.

    Attributes:
        model: As the command line has it: a name, a folder, a repository, or "auto".
        scorer: Name of the scorer that ranks.
        also: Names of others whose scores are kept.
        scheduler: Class name of another scheduler.
        safety_checker: Whether a checkpoint's safety checker is used.
        device: "auto" takes the accelerator.
        dtype: Precision of the pipeline.
        checkpoint: What is asked of the model beside its name.
        compiled: Whether the denoiser is compiled.
        function: "module:function" that returns (pipe, scorer, others) in place of all that.
    """

    model: str = "auto"
    scorer: str = "sp"
    also: tuple[str, ...] = ()
    scheduler: str | None = None
    safety_checker: bool = True
    device: str = "auto"
    dtype: str = "auto"
    checkpoint: CheckpointOptions = _PLAIN
    compiled: bool = False
    function: str | None = None

    @classmethod
    def of(cls, function: Callable[[], tuple[Any, Scorer, Sequence[Scorer]]]) -> Models:
        """The models that a function of a module returns.

        Raises:
            UsageError: If workers could not find the function by its name.
        """
        module, name = getattr(function, "__module__", "__main__"), getattr(function, "__qualname__", "<")
        if module == "__main__" or "<" in name or "." in name:
            raise UsageError(f"{name} of {module}: expected a function of a module that worker processes can import")
        return cls(function=f"{module}:{name}")

    def load(self) -> tuple[Any, Scorer, Sequence[Scorer]]:
        """Pipeline, scorer, other scorers."""
        if self.function:
            module, _, name = self.function.partition(":")
            return getattr(import_module(module), name)()
        from sp_rerank import scorers
        from sp_rerank.diffusion import loading

        with loading.quiet():
            pipe, _ = loading.open_pipeline(
                self.model, device=self.device, dtype=self.dtype, scheduler=self.scheduler,
                safety_checker=self.safety_checker, compiled=self.compiled, **self.checkpoint.keywords(),
            )  # fmt: skip
            specs = [scorers.resolve_spec(name, loading.model_of(pipe))[0] for name in (self.scorer, *self.also)]
            ranker, *others = (scorers.load_scorer(spec, device=str(device_of(pipe))) for spec in specs)
        return pipe, ranker, others


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker needs to know of its batch.

    Attributes:
        place: Folder or URL of the batch.
        models: To be loaded.
        options: Of `generate`, by name.
        keep: Whose images are kept.
        image_format: Of the images.
        threads: Of a CPU.
        pack: Number of prompts that are made together.
    """

    place: str
    models: Models
    options: Mapping[str, Any]
    keep: Keep = "top"
    image_format: ImageFormat = "png"
    threads: int = 1
    pack: int = 1

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, line: str) -> Order:
        """The order of a line."""
        record = json.loads(line)
        models = {**record["models"], "also": tuple(record["models"]["also"])}
        models["checkpoint"] = CheckpointOptions(**models["checkpoint"])
        return cls(**{**record, "models": Models(**models)})


@dataclass(frozen=True, slots=True)
class Best:
    """The best candidate of a unit."""

    seed: int
    score: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt in a worker.

    Attributes:
        id: Of the row.
        status: "ok" and "unusable" are units that are done; "failed" is not tried again; "again" is tried again by
            another worker, for this one is broken; "storage" says that the store cannot be written.
        made: Number of candidates.
        best: The best candidate, if there is one.
        error: What went wrong, in one line.
        first: Whether this worker committed the unit; False where another one was first.
    """

    id: str
    status: Literal["ok", "unusable", "failed", "timeout", "again", "storage"]
    made: int = 0
    best: Best | None = None
    error: str = ""
    first: bool = True

    def to_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """As `to_record` gave it."""
        return cls(**{**record, "best": record["best"] and Best(**record["best"])})
