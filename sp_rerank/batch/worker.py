"""What makes units: one loaded pipeline with its scorers, whatever engine hands out the prompts.

Knows models, runs and the ledger. Knows no other worker. `python -m sp_rerank.batch.worker` is one as a process: it
reads what it needs and then one prompt a line from standard input, and writes a JSON line for everything that happens.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from sp_rerank.batch.batch_config import BatchConfig, Keep, without_prompt
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.prompts import PromptRow
from sp_rerank.batch.units import ImageFormat, Unit, encode, encode_image, key_of, name_of
from sp_rerank.config import CheckpointOptions, GenerationOptions
from sp_rerank.diffusion.placement import device_of
from sp_rerank.errors import (
    NothingUsableError,
    SpRerankError,
    StorageError,
    TryAgainError,
    UsageError,
    is_device_lost,
    is_out_of_memory,
)
from sp_rerank.generate import Job, Progress, check_usable, search_into, store_for
from sp_rerank.run.memory import MemoryRun
from sp_rerank.scorers.ensemble import with_members

if TYPE_CHECKING:
    from sp_rerank.run.state import RunState
    from sp_rerank.run.summary import RunResult
    from sp_rerank.types import Scorer

log = logging.getLogger(__name__)

CUT_SHORT = TryAgainError.exit_code


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
                safety_checker=self.safety_checker, **self.checkpoint.keywords(),
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
    """

    place: str
    models: Models
    options: Mapping[str, Any]
    keep: Keep = "top"
    image_format: ImageFormat = "png"
    threads: int = 1

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


class UnitMaker:
    """A loaded pipeline with its scorers that makes units of one batch.

    Args:
        order: What is to be made.

    Raises:
        UsageError: If what it resolves to is not what the batch was begun with: other options, device or versions.
        HubUnavailableError, StorageError: As loading the models does.
    """

    def __init__(self, order: Order) -> None:
        import torch

        from sp_rerank.diffusion.memory_limit import MemoryLimit
        from sp_rerank.search.resolve import resolve

        self._ledger = Ledger(order.place)
        held = self._ledger.config
        options = {**order.options, "pipe_kwargs": order.options.get("pipe_kwargs") or None}
        self._options = GenerationOptions(**options)
        self._keep, self._format = order.keep, order.image_format
        torch.set_num_threads(held.threads if held and held.threads else order.threads)
        pipe, scorer, also = order.models.load()
        also = with_members(scorer, also)
        self._models = pipe, scorer, also
        self._memory = MemoryLimit()
        device = device_of(pipe)
        cpu = device.type == "cpu"
        self._hardware = "cpu" if cpu else _accelerator(device)
        config = BatchConfig(
            config=without_prompt(resolve("-", self._options, pipe=pipe, scorer=scorer, also=also)),
            top_k=self._options.kept,
            diverse=self._options.diverse,
            strict=self._options.strict,
            keep=order.keep,
            image_format=order.image_format,
            threads=torch.get_num_threads() if cpu else None,
        )
        self._ledger.join(config)

    def make(self, row: PromptRow, progress: Callable[[], None] = lambda: None) -> Outcome:
        """Make and commit the unit of a prompt; what goes wrong is the outcome, whatever it is.

        Args:
            row: The prompt.
            progress: Called after each batch of images.
        """
        try:
            return self._made(row, lambda _: progress())
        except TryAgainError as error:
            return Outcome(row.id, "again", error=str(error))
        except StorageError as error:
            return Outcome(row.id, "storage", error=str(error))
        except SpRerankError as error:
            return Outcome(row.id, "failed", error=str(error))
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            broken = is_out_of_memory(error) or is_device_lost(error)
            return Outcome(row.id, "again" if broken else "failed", error=why)

    def _made(self, row: PromptRow, progress: Callable[[Progress], None]) -> Outcome:
        from sp_rerank.search.resolve import resolve

        pipe, scorer, also = self._models
        options = replace(self._options, **row.overrides)
        config = resolve(row.prompt, options, pipe=pipe, scorer=scorer, also=also)
        job = Job(config, options, pipe, scorer, also, self._memory)
        if self._keep == "run":
            folder = Path(self._ledger.place) / "runs" / name_of(row.id)
            result, state = search_into(store_for(job, folder, resume=True), job, progress=progress, out=folder)
            return self._commit(row, job, result, state, {})
        everything = self._keep == "all" or options.diverse
        store = MemoryRun(config, config.n if everything else options.kept)
        result, state = search_into(nullcontext(store), job, progress=progress)
        kept = {"top": result.summary.best, "all": state.best(config.n), "none": ()}[self._keep]
        images = {
            index: encode_image(store.candidate(index), config, state.rows[index].scores, self._format)
            for index in kept
        }
        return self._commit(row, job, result, state, images)

    def _commit(
        self, row: PromptRow, job: Job, result: RunResult, state: RunState, images: Mapping[int, bytes]
    ) -> Outcome:
        status: Literal["ok", "unusable"] = "ok"
        try:
            check_usable(state, result.summary)
        except NothingUsableError:
            status = "unusable"
        rows = [state.rows[index] for index in sorted(state.rows)]
        scores = {index: state.score(index) for index in state.rows}
        unit = Unit(row, status, job.config, rows, scores, result.summary, images, self._hardware)
        first = self._ledger.store.create(key_of(row.id), encode(unit))
        best = Best(result[0].seed or 0, result[0].score) if len(result) else None
        return Outcome(row.id, status, len(rows), best, first=first)


def _accelerator(device: Any) -> str:
    """The name of a device, for the record: two kinds of one accelerator make different pixels."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def main() -> None:
    """Be a worker process: an order and then rows on standard input, events on standard output, one JSON a line.

    The process ends when standard input does, at once: whoever gave the rows is gone. Signals are for the process that
    started it to obey. Whatever else prints goes to standard error.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.getLogger("sp_rerank").addHandler(logging.NullHandler())
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()

    def report(event: str, **more: Any) -> None:
        events.write(json.dumps({"event": event, **more}) + "\n")
        events.flush()

    try:
        maker = UnitMaker(Order.from_json(lines.get()))
    except SpRerankError as error:
        report("refused", code=error.exit_code, error=str(error))
        sys.exit(error.exit_code)
    report("ready")
    while True:
        outcome = maker.make(PromptRow(**json.loads(lines.get())), lambda: report("progress"))
        report("outcome", outcome=outcome.to_record())
        if outcome.status == "again":
            os._exit(CUT_SHORT)  # the accelerator's context is lost with the process, and only with it


def _listen(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(CUT_SHORT)


if __name__ == "__main__":
    main()
