"""What makes units: one loaded pipeline with its scorers, whatever engine hands out the prompts.

Knows models, runs and the ledger. Knows no other worker. `python -m sp_rerank.batch.worker` is one as a process: it
reads what it needs and then one pack of prompts a line from standard input, and writes a JSON line for everything that
happens.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from sp_rerank.batch.batch_config import BatchConfig, without_prompt
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.order import Best, Order, Outcome
from sp_rerank.batch.packs import Pack
from sp_rerank.batch.prompts import PromptRow
from sp_rerank.batch.units import Unit, encode, encode_image, key_of, name_of
from sp_rerank.config import GenerationOptions
from sp_rerank.diffusion.placement import device_of
from sp_rerank.errors import (
    NothingUsableError,
    SpRerankError,
    StorageError,
    TryAgainError,
    is_device_lost,
    is_out_of_memory,
)
from sp_rerank.generate import Job, Progress, check_usable, search_into, store_for
from sp_rerank.run.memory import MemoryRun
from sp_rerank.scorers.ensemble import with_members

if TYPE_CHECKING:
    from sp_rerank.run.state import RunState
    from sp_rerank.run.summary import RunResult

log = logging.getLogger(__name__)

CUT_SHORT = TryAgainError.exit_code


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
            pack=order.pack,
        )
        self._ledger.join(config)

    def make(self, pack: Pack, progress: Callable[[], None] = lambda: None) -> list[Outcome]:
        """Make and commit the units of a pack that are due; what goes wrong is the outcome, whatever it is.

        Args:
            pack: One prompt, or several that share calls of the pipeline. Where such a call fails, each of them is made
                by itself, so that the one which is to blame takes no other along.
            progress: Called after each batch of images.

        Returns:
            An outcome a due prompt; fewer where one says that this worker is broken, or that the store is.
        """
        found: list[Outcome] = []
        for outcome in self._together(pack, progress) if len(pack.rows) > 1 else self._alone(pack, progress):
            found.append(outcome)
            if outcome.status in ("again", "storage"):
                break
        return found

    def _alone(self, pack: Pack, progress: Callable[[], None]) -> Iterator[Outcome]:
        """Each prompt by itself."""
        for row in pack.rows:
            if row.id in pack.due:
                yield outcome_of(row.id, lambda row=row: self._made(row, self._job(row), progress))

    def _together(self, pack: Pack, progress: Callable[[], None]) -> Iterator[Outcome]:
        """The prompts in calls that they share."""
        from sp_rerank.diffusion.packed import make_together

        jobs: dict[str, Job] = {}
        refused: dict[str, Outcome] = {}
        for row in pack.rows:
            try:
                jobs[row.id] = self._job(row)
            except SpRerankError as error:
                refused[row.id] = Outcome(row.id, "failed", error=str(error))
        try:
            configs = [job.config for job in jobs.values()]
            pipe = self._models[0]
            made = make_together(configs, pipe, memory_limit=self._memory, progress=progress) if configs else []
        except Exception as error:
            outcome = _failure(pack.due[0], error)
            if outcome.status == "again":
                yield outcome
                return
            log.warning("%d prompts cannot be made together, each is made by itself: %s", len(jobs), outcome.error)
            yield from self._alone(pack, progress)
            return
        together = tuple(jobs)
        batches = dict(zip(jobs, made, strict=True))
        for row in pack.rows:
            if row.id not in pack.due:
                continue
            if row.id in refused:
                yield refused[row.id]
                continue
            job = replace(jobs[row.id], batches=batches[row.id])
            yield outcome_of(row.id, lambda row=row, job=job: self._made(row, job, progress, together))

    def _job(self, row: PromptRow) -> Job:
        """What is to be done for a row.

        Raises:
            UsageError: If it does not fit the models.
        """
        from sp_rerank.search.resolve import resolve

        pipe, scorer, also = self._models
        options = replace(self._options, **row.overrides)
        config = resolve(row.prompt, options, pipe=pipe, scorer=scorer, also=also)
        return Job(config, options, pipe, scorer, also, self._memory)

    def _made(self, row: PromptRow, job: Job, progress: Callable[[], None], together: tuple[str, ...] = ()) -> Outcome:
        def report(_: Progress) -> None:
            progress()

        config, options = job.config, job.options
        if self._keep == "run":
            folder = Path(self._ledger.place) / "runs" / name_of(row.id)
            result, state = search_into(store_for(job, folder, resume=True), job, progress=report, out=folder)
            return self._commit(row, job, result, state, {})
        everything = self._keep == "all" or options.diverse
        store = MemoryRun(config, config.n if everything else options.kept)
        result, state = search_into(nullcontext(store), job, progress=report)
        kept = {"top": result.summary.best, "all": state.best(config.n), "none": ()}[self._keep]
        images = {
            index: encode_image(store.candidate(index), config, state.rows[index].scores, self._format)
            for index in kept
        }
        return self._commit(row, job, result, state, images, together)

    def _commit(
        self,
        row: PromptRow,
        job: Job,
        result: RunResult,
        state: RunState,
        images: Mapping[int, bytes],
        together: tuple[str, ...] = (),
    ) -> Outcome:
        status: Literal["ok", "unusable"] = "ok"
        try:
            check_usable(state, result.summary)
        except NothingUsableError:
            status = "unusable"
        rows = [state.rows[index] for index in sorted(state.rows)]
        scores = {index: state.score(index) for index in state.rows}
        unit = Unit(row, status, job.config, rows, scores, result.summary, images, self._hardware, together)
        first = self._ledger.store.create(key_of(row.id), encode(unit))
        best = Best(result[0].seed or 0, result[0].score) if len(result) else None
        return Outcome(row.id, status, len(rows), best, first=first)


def outcome_of(row_id: str, make: Callable[[], Outcome]) -> Outcome:
    """What comes of making a unit, whatever goes wrong."""
    try:
        return make()
    except Exception as error:
        return _failure(row_id, error)


def _failure(row_id: str, error: Exception) -> Outcome:
    if isinstance(error, TryAgainError):
        return Outcome(row_id, "again", error=str(error))
    if isinstance(error, StorageError):
        return Outcome(row_id, "storage", error=str(error))
    if isinstance(error, SpRerankError):
        return Outcome(row_id, "failed", error=str(error))
    why = " ".join(f"{type(error).__name__}: {error}".split())
    broken = is_out_of_memory(error) or is_device_lost(error)
    return Outcome(row_id, "again" if broken else "failed", error=why)


def _accelerator(device: Any) -> str:
    """The name of a device, for the record: two kinds of one accelerator make different pixels."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def main() -> None:
    """Be a worker process: an order and then packs on standard input, events on standard output, one JSON a line.

    The process ends when standard input does, at once: whoever gave the packs is gone. Signals are for the process that
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
        outcomes = maker.make(Pack.from_record(json.loads(lines.get())), lambda: report("progress"))
        report("outcomes", outcomes=[outcome.to_record() for outcome in outcomes])
        if outcomes[-1].status == "again":
            os._exit(CUT_SHORT)  # the accelerator's context is lost with the process, and only with it


def _listen(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(CUT_SHORT)


if __name__ == "__main__":
    main()
