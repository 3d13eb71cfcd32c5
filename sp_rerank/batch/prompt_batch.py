"""A list of prompts, what is to be made of them and where: checked, laid down, and made by an engine.

Knows what makes a batch the same batch, which engines there are and how many workers each gets. What becomes of an
error is in `drive`, what a unit is in `units`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Unpack

from sp_rerank.batch.arrow import arrow
from sp_rerank.batch.batch_config import BatchConfig, Keep, refuse_other
from sp_rerank.batch.drive import Driver, Pool, Rules
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.local import LocalPool
from sp_rerank.batch.order import Models, Order, Outcome
from sp_rerank.batch.packs import Pack, check_pack
from sp_rerank.batch.prompts import PromptRow, rows_of
from sp_rerank.batch.shards import Shard, accelerators, processors
from sp_rerank.batch.units import ImageFormat
from sp_rerank.config import GenerationKeywords, GenerationOptions
from sp_rerank.errors import OptionError, UsageError

Engine = Literal["local", "ray"]

ALLOWED_SHARE, ALLOWED = 0.01, 10
"""Failures above which a batch stops where nothing else is said: the larger of a share of the rows and a number."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How a batch is made and what is kept of it.

    Attributes:
        keep: Images of the best ("top"), of all usable candidates ("all"), none, or whole run folders ("run").
        image_format: "png", lossless "webp", or "jpeg".
        engine: "local" starts processes on this machine, "ray" actors of a Ray cluster.
        workers: Number of them; None takes one an accelerator, or one where there is none.
        shard: The part of the rows that is made here.
        max_failed: Failures above which the batch stops, as a number or a share such as "1%"; None is the larger of 10
            and 1 %.
        rules: What is tried and for how long.
        pack: Number of prompts whose images are made in shared calls; see `sp_rerank.batch.packs`.
    """

    keep: Keep = "top"
    image_format: ImageFormat = "png"
    engine: Engine = "local"
    workers: int | None = None
    shard: Shard = Shard()
    max_failed: str | None = None
    rules: Rules = Rules()
    pack: int = 1


_MODELS, _SETTINGS = Models(), BatchSettings()


class PromptBatch:
    """A batch of prompts in a folder or an object store.

    Args:
        prompts: Rows of `sp_rerank.batch.prompts.read_prompts`, or texts.
        out: Folder or URL. Where it holds a part of this batch, the rest is made; rows can be added.
        models: What the workers load; see `Models.of` for a pipeline of one's own.
        settings: How it is made and what is kept.
        **options: As in `sp_rerank.generate`; what a row says goes before.

    Raises:
        UsageError: If an option or a row cannot be used, or `out` holds another batch.
        StorageError: If `out` cannot be read or written.

    Example:
        >>> batch = PromptBatch(["a lemon", "a cat"], "batches/two", models=Models("mini"), n=20)
        >>> for outcome in batch.run():
        ...     print(outcome.id, outcome.status, outcome.best.seed)
        0 ok 7
        1 ok 12
    """

    def __init__(
        self,
        prompts: Iterable[PromptRow] | Iterable[str],
        out: str | Path,
        *,
        models: Models = _MODELS,
        settings: BatchSettings = _SETTINGS,
        **options: Unpack[GenerationKeywords],
    ) -> None:
        arrow()
        self.options, self.models, self.settings = GenerationOptions(**options), models, settings
        self.ledger = Ledger(out)
        if self.options.more:
            raise OptionError("more", self.options.more, "none: a batch grows by rows, not by candidates of a row")
        if settings.max_failed is not None:
            parse_allowed(settings.max_failed, 0)
        if settings.keep == "run" and "://" in str(out):
            raise OptionError("keep", "run", "top, all or none: run folders need a local folder, which an URL is not")
        check_pack(settings.pack, self.options, settings.keep)
        held = self.ledger.config
        if held:
            refuse_other(self.ledger.place, [*held.matches(self.options), *self._unlike(held)])
        self.total = self.ledger.add_prompts(self._checked(prompts))

    def _unlike(self, held: BatchConfig) -> list[str]:
        pairs = [(name, getattr(held, name), getattr(self.settings, name)) for name in ("keep", "image_format", "pack")]
        return [f"{name} is {was}, not {asked}" for name, was, asked in pairs if was != asked]

    def _checked(self, prompts: Iterable[PromptRow] | Iterable[str]) -> Iterator[PromptRow]:
        """The rows, each with options that fit it: what can be refused is refused before a model is loaded."""
        for row in _rows(prompts):
            try:
                replace(self.options, **row.overrides)
            except OptionError as error:
                raise UsageError(f"row {row.id!r}: {error}") from error
            yield row

    def due(self) -> Iterator[Pack]:
        """The packs of this shard with prompts that are neither done nor failed."""
        shard = self.settings.shard
        settled = self.ledger.settled()
        packs = islice(self.ledger.packs(self.settings.pack), shard.index, None, shard.count)
        return (rest for pack in packs if (rest := pack.without(settled)).due)

    def run(self, stop: Callable[[], str | None] = lambda: None) -> Iterator[Outcome]:
        """Make what is due, and tell of each unit as it is settled.

        Args:
            stop: Asked all the time; a text, such as "SIGTERM", ends the batch when what is in hand is finished, or
                the grace of the rules is over.

        Raises:
            SpRerankError: As `sp_rerank.batch.drive` has it; what is done stays done.
        """
        first = next(self.due(), None)
        if first is None:
            return
        pool, workers = self._pool()
        driver = Driver(self.ledger, pool, workers=workers, rules=self._rules(), stop=stop)
        yield from driver.settle(self.due())

    def _pool(self) -> tuple[Pool, int]:
        """The engine and its number of workers."""
        visible = [] if self.models.device == "cpu" else accelerators()
        if self.settings.engine == "ray":
            from sp_rerank.batch.ray_pool import RayPool

            pool = RayPool(self._order(1), cpu=self.models.device == "cpu")
            return pool, self.settings.workers or pool.places
        workers = self.settings.workers or max(1, len(visible))
        return LocalPool(self._order(max(1, processors() // workers)), visible), workers

    def _order(self, threads: int) -> Order:
        said = os.environ.get("OMP_NUM_THREADS", "")
        return Order(
            place=str(Path(self.ledger.place).resolve()) if "://" not in self.ledger.place else self.ledger.place,
            models=self.models,
            options={entry.name: getattr(self.options, entry.name) for entry in fields(self.options)},
            keep=self.settings.keep,
            image_format=self.settings.image_format,
            pack=self.settings.pack,
            threads=int(said) if said.isdigit() and int(said) else threads,
        )

    def _rules(self) -> Rules:
        said = self.settings.max_failed
        allowed = max(ALLOWED, int(ALLOWED_SHARE * self.total)) if said is None else parse_allowed(said, self.total)
        return replace(self.settings.rules, max_failed=allowed)


def _rows(prompts: Iterable[PromptRow] | Iterable[str]) -> Iterator[PromptRow]:
    """Rows of rows or of texts."""
    given: Iterator[Any] = iter(prompts)
    for first in given:
        everything = chain([first], given)
        yield from rows_of(everything) if isinstance(first, str) else everything


def parse_allowed(text: str, total: int) -> int:
    """A number of failures from "12" or "1.5%".

    Raises:
        OptionError: If it is neither.
    """
    try:
        number = float(text.removesuffix("%"))
        if not 0 <= number < 1e12 or (text.endswith("%") and number > 100):
            raise ValueError
    except ValueError as error:
        raise OptionError("max_failed", text, "a number of prompts from 0, or a share of them such as 1%") from error
    return int(total * number / 100) if text.endswith("%") else int(number)
