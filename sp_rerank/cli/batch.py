"""The command `batch` and those under it: many prompts, how far they are, what failed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from sp_rerank.cli import batch_results
from sp_rerank.cli.batch_results import Place
from sp_rerank.cli.console import (
    OUT_VARIABLE,
    Device,
    Dtype,
    Json,
    ScorerOption,
    check_words,
    plain,
    print_json,
    progress_bar,
    say,
    tell,
)
from sp_rerank.cli.generate import (
    Also,
    Compile,
    Model,
    SafetyChecker,
    Scheduler,
    check_search,
    split_options,
    with_options,
)
from sp_rerank.errors import NothingUsableError, TryAgainError

if TYPE_CHECKING:
    from sp_rerank.batch.ledger import BatchStatus
    from sp_rerank.batch.order import Outcome
    from sp_rerank.batch.prompt_batch import PromptBatch

ENGINE = "Engine"


class Keeps(StrEnum):
    """Whose images are kept."""

    top = "top"
    all = "all"
    none = "none"
    run = "run"


class Formats(StrEnum):
    """Of the images."""

    png = "png"
    webp = "webp"
    jpeg = "jpeg"


class Engines(StrEnum):
    """What starts the workers."""

    local = "local"
    ray = "ray"


class PromptsOrCommand(TyperGroup):
    """`batch PROMPTS` is `batch make PROMPTS`: a word that is no command is a file."""

    default = "make"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, with the command put in where none stands."""
        if args and args[0] != "--help" and args[0] not in self.commands:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


Prompts = Annotated[
    list[str],
    typer.Argument(
        metavar="PROMPTS...",
        help="Lists of prompts: .txt (a line each), .csv, .tsv, .json, .jsonl, .parquet, or - for standard input.",
    ),
]
OutPlace = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        help=f"Folder, or URL such as s3://bucket/path. [default: NAME in {OUT_VARIABLE}, or else in batches]",
    ),
]
Keep = Annotated[
    Keeps, typer.Option(help="Images to keep: of the best, of all usable candidates, none, or whole run folders.")
]
ImageFormat = Annotated[Formats, typer.Option(help="Of the images; WebP is lossless.")]
PackOption = Annotated[
    str,
    typer.Option(
        help="Prompts that share calls of the pipeline, where each has few candidates: a number, or auto to fill "
        "--batch-size.",
        rich_help_panel=ENGINE,
    ),
]
Engine = Annotated[
    Engines, typer.Option(help="Processes of this machine, or actors of a Ray cluster.", rich_help_panel=ENGINE)
]
Workers = Annotated[
    int | None, typer.Option(help="Number of workers. [default: one an accelerator]", min=1, rich_help_panel=ENGINE)
]
ShardOption = Annotated[
    str,
    typer.Option(
        help="Make a part of the prompts: I/N, or auto where SLURM, Kubernetes (auto/N) or torchrun say which.",
        rich_help_panel=ENGINE,
    ),
]
Tries = Annotated[
    int, typer.Option(help="Deaths of a process after which its prompt has failed.", min=1, rich_help_panel=ENGINE)
]
Timeout = Annotated[
    float, typer.Option(help="Seconds without progress that a prompt has at least.", min=1, rich_help_panel=ENGINE)
]
TimeoutFactor = Annotated[
    float, typer.Option(help="The same as a multiple of the median prompt's seconds.", min=1, rich_help_panel=ENGINE)
]
StartTimeout = Annotated[
    float,
    typer.Option(help="Seconds for a worker to load its models, a download included.", min=1, rich_help_panel=ENGINE),
]
MaxFailed = Annotated[
    str | None,
    typer.Option(
        help="Failed prompts above which the batch stops, such as 5 or 2%. [default: 10, or 1% if that is more]",
        rich_help_panel=ENGINE,
    ),
]
Grace = Annotated[
    float,
    typer.Option(help="Seconds for the prompts in hand after SIGTERM or Ctrl-C.", min=0, rich_help_panel=ENGINE),
]


@with_options
def make(
    prompts: Prompts,
    out: OutPlace = None,
    model: Model = "auto",
    scorer: ScorerOption = "sp",
    also: Also = [],  # noqa: B006  # typer reads it, and passes a new list
    scheduler: Scheduler = None,
    safety_checker: SafetyChecker = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    compiled: Compile = False,
    keep: Keep = Keeps.top,
    image_format: ImageFormat = Formats.png,
    pack: PackOption = "1",
    engine: Engine = Engines.local,
    workers: Workers = None,
    shard: ShardOption = "0/1",
    tries: Tries = 2,
    timeout: Timeout = 60,
    timeout_factor: TimeoutFactor = 20,
    start_timeout: StartTimeout = 1800,
    max_failed: MaxFailed = None,
    grace: Grace = 25,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make N candidates for each of many prompts and keep the best; the same command goes on where it stopped."""
    from sp_rerank.batch.drive import Rules
    from sp_rerank.batch.order import Models
    from sp_rerank.batch.packs import pack_size
    from sp_rerank.batch.prompt_batch import BatchSettings, PromptBatch
    from sp_rerank.batch.prompts import read_prompts
    from sp_rerank.batch.shards import parse_shard

    asked, checkpoint = split_options(options)
    check_search(asked)
    check_words(scorers=[scorer, *also], model=model, device=device, dtype=dtype)
    options = {entry.name: getattr(asked, entry.name) for entry in fields(asked)}
    batch = PromptBatch(
        read_prompts(*prompts),
        out or _default_place(prompts[0]),
        models=Models(model, scorer, tuple(also), scheduler, safety_checker, device, dtype, checkpoint, compiled),
        settings=BatchSettings(
            keep=keep.value,
            image_format=image_format.value,
            engine=engine.value,
            workers=workers,
            shard=parse_shard(shard),
            max_failed=max_failed,
            rules=Rules(tries, timeout, timeout_factor, grace=grace, start_timeout=start_timeout),
            pack=pack_size(pack, asked),
        ),
        **options,
    )
    _run(batch, as_json)


def _default_place(list_of_prompts: str) -> str:
    from sp_rerank.batch.prompts import STDIN

    name = "stdin" if list_of_prompts == STDIN else Path(list_of_prompts).stem
    return f"{os.environ.get(OUT_VARIABLE) or 'batches'}/{name}"


def _run(batch: PromptBatch, as_json: bool) -> None:
    """Make what is due, tell of it, and end with an error where prompts have failed."""
    place = batch.ledger.place
    with _stop_asked() as stop:
        due = sum(len(pack.due) for pack in batch.due())
        say(f"{batch.total} prompts, {due} to be made here: {place}")
        results = sys.stdout
        with redirect_stdout(sys.stderr), progress_bar(due, "prompts") as progress:  # Ray prints to standard output
            made = _counted(batch.run(stop), progress, None if as_json else partial(_tell, results))
    if as_json:
        print_json({"batch": place, "total": batch.total, **made})
    say(f"{made['ok']} made, {made['unusable']} without a usable image, {made['failed']} failed")
    failed = len(batch.ledger.failures())
    if failed:
        raise NothingUsableError(
            f"{failed} of {batch.total} prompts failed: `sp-rerank batch status {place}` names them, "
            f"`sp-rerank batch retry {place}` makes them due again"
        )


def _counted(
    outcomes: Iterator[Outcome], progress: Callable[[int], None], report: Callable[[Outcome], None] | None
) -> dict[str, int]:
    made = {"ok": 0, "unusable": 0, "failed": 0}
    for number, outcome in enumerate(outcomes, 1):
        made["failed" if outcome.status == "timeout" else outcome.status] += 1
        if report:
            report(outcome)
        progress(number)
    return made


def _tell(results: TextIO, outcome: Outcome) -> None:
    """A line of a unit: id, its best seed and score, or what went wrong."""
    if outcome.best:
        line = f"{outcome.id}  {outcome.best.score:.4f}  seed {outcome.best.seed}"
    else:
        line = f"{outcome.id}  {outcome.status}{f': {outcome.error}' if outcome.error else ''}"
    print(plain(line), file=results, flush=True)


@contextmanager
def _stop_asked() -> Iterator[Callable[[], str | None]]:
    """Ctrl-C or SIGTERM once lets the prompts in hand be finished, twice stops at once.

    Raises:
        KeyboardInterrupt: In place of the error of a batch that was stopped by Ctrl-C.
    """
    received: list[str] = []

    def ask(number: int, _: Any) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, signal.default_int_handler)
        say(f"{received[0]}: finishing the prompts in hand; once more stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    except TryAgainError:
        if received and received[0] == "SIGINT":
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status(place: Place, as_json: Json = False) -> None:
    """How far a batch is: done, failed, left, images a second, and what failed. Asks no engine."""
    from sp_rerank.batch.ledger import Ledger

    found = Ledger(place).status()
    if as_json:
        print_json({
            "batch": place, "done": found.done, "failed": found.failed, "left": found.left, "images": found.images,
            "rate": found.rate, "seconds_left": found.seconds_left, "idle": found.idle,
            "failures": [{"id": f.id, "status": f.status, "tries": f.tries, "error": f.error} for f in found.failures],
        })  # fmt: skip
        return
    tell(f"{found.done} done ({found.images} candidates), {found.failed} failed, {found.left} left{_when(found)}")
    for failure in found.failures:
        tell(f"{plain(failure.id)}  {failure.status} after {failure.tries}: {failure.error}")


def _when(found: BatchStatus) -> str:
    if not found.left or found.seconds_left is None or found.idle is None:
        return ""
    ends = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + found.seconds_left))
    return f"; {found.rate:.2g} candidates/s, the newest {found.idle:.0f} s ago; at this rate it ends at {ends}"


def retry(place: Place) -> None:
    """Make the prompts that failed due again; the next `sp-rerank batch PROMPTS` makes them."""
    from sp_rerank.batch.ledger import Ledger

    tell(f"{Ledger(place).retry()} prompts are due again; run `sp-rerank batch` with the list to make them")


app = typer.Typer(cls=PromptsOrCommand, no_args_is_help=True, rich_markup_mode="markdown")
app.command()(make)
app.command()(status)
app.command()(retry)
app.command()(batch_results.score)
app.command()(batch_results.export)
app.command()(batch_results.compare)
app.command()(batch_results.overview)
