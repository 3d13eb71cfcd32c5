"""The command `batch` and those under it: many prompts, how far they are, what failed."""

from __future__ import annotations

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

from sp_rerank.cli.console import (
    Device,
    Dtype,
    Json,
    ScorerOption,
    load_scorer,
    plain,
    print_json,
    progress_bar,
    quiet,
    say,
    tell,
)
from sp_rerank.cli.generate import Also, Model, SafetyChecker, Scheduler, check_search, split_options, with_options
from sp_rerank.errors import NothingUsableError, TryAgainError

if TYPE_CHECKING:
    from sp_rerank.batch.ledger import BatchStatus
    from sp_rerank.batch.worker import Outcome

ENGINE = "Engine"

Place = Annotated[str, typer.Argument(metavar="BATCH", help="Folder or URL of a batch.")]


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


@with_options
def make(
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPTS...",
            help="Lists of prompts: .txt (a line each), .csv, .tsv, .json, .jsonl, .parquet, or - for standard input.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Folder, or URL such as s3://bucket/path. [default: batches/NAME]"),
    ] = None,
    model: Model = "auto",
    scorer: ScorerOption = "sp",
    also: Also = [],  # noqa: B006  # typer reads it, and passes a new list
    scheduler: Scheduler = None,
    safety_checker: SafetyChecker = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    keep: Annotated[
        Keeps, typer.Option(help="Images to keep: of the best, of all usable candidates, none, or whole run folders.")
    ] = Keeps.top,
    image_format: Annotated[Formats, typer.Option(help="Of the images; WebP is lossless.")] = Formats.png,
    engine: Annotated[
        Engines, typer.Option(help="Processes of this machine, or actors of a Ray cluster.", rich_help_panel=ENGINE)
    ] = Engines.local,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of workers. [default: one an accelerator]", min=1, rich_help_panel=ENGINE),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            help="Make a part of the prompts: I/N, or auto where SLURM, Kubernetes (auto/N) or torchrun say which.",
            rich_help_panel=ENGINE,
        ),
    ] = "0/1",
    tries: Annotated[
        int, typer.Option(help="Deaths of a process after which its prompt has failed.", min=1, rich_help_panel=ENGINE)
    ] = 2,
    timeout: Annotated[
        float, typer.Option(help="Seconds without progress that a prompt has at least.", min=1, rich_help_panel=ENGINE)
    ] = 60,
    timeout_factor: Annotated[
        float,
        typer.Option(help="The same as a multiple of the median prompt's seconds.", min=1, rich_help_panel=ENGINE),
    ] = 20,
    max_failed: Annotated[
        str | None,
        typer.Option(
            help="Failed prompts above which the batch stops, such as 5 or 2%. [default: 10, or 1% if that is more]",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(help="Seconds for the prompts in hand after SIGTERM or Ctrl-C.", min=0, rich_help_panel=ENGINE),
    ] = 25,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make N candidates for each of many prompts and keep the best; the same command goes on where it stopped."""
    from sp_rerank.batch.drive import Rules
    from sp_rerank.batch.prompt_batch import BatchSettings, PromptBatch
    from sp_rerank.batch.prompts import STDIN, read_prompts
    from sp_rerank.batch.shards import parse_shard
    from sp_rerank.batch.worker import Models

    asked, checkpoint = split_options(options)
    check_search(asked)
    options = {entry.name: getattr(asked, entry.name) for entry in fields(asked)}
    place = out or str(Path("batches") / ("stdin" if prompts[0] == STDIN else Path(prompts[0]).stem))
    batch = PromptBatch(
        read_prompts(*prompts),
        place,
        models=Models(model, scorer, tuple(also), scheduler, safety_checker, device, dtype, checkpoint),
        settings=BatchSettings(
            keep=keep.value,
            image_format=image_format.value,
            engine=engine.value,
            workers=workers,
            shard=parse_shard(shard),
            max_failed=max_failed,
            rules=Rules(tries=tries, timeout=timeout, timeout_factor=timeout_factor, grace=grace),
        ),
        **options,
    )
    with _stop_asked() as stop:
        due = sum(1 for _ in batch.due())
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


def score(
    place: Place,
    scorer: Annotated[list[str], typer.Option(help="A name of `sp-rerank scorers`, or sp@FOLDER; repeatable.")],
    device: Device = "auto",
) -> None:
    """Add the scores of other scorers to a batch, for the images that it keeps."""
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.batch.second_pass import score_batch
    from sp_rerank.diffusion import loading

    ledger = Ledger(place)
    ledger.check()
    total = len(ledger.keys("units"))
    for spec in scorer:
        with quiet():
            loaded = load_scorer(spec, None, loading.find_device(device))
            with progress_bar(total, "prompts") as progress:
                done = score_batch(ledger, loaded, progress)
        tell(f"{loaded.name}: {done} prompts scored")


def export(
    place: Place,
    to: Annotated[
        str,
        typer.Option(
            help="hf (parquet with images), imagefolder, webdataset, geneval, pairs (Pick-a-Pic's), or table."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    top_k: Annotated[
        int | None, typer.Option(help="The best of each prompt. [default: all that were kept]", min=1)
    ] = None,
    min_gap: Annotated[float, typer.Option(help="Of a pair: how much more the better one scores at least.")] = 0.0,
) -> None:
    """Write a batch in a layout that others read."""
    from sp_rerank.batch.exports import Selection
    from sp_rerank.batch.exports import export as export_batch
    from sp_rerank.batch.ledger import Ledger

    count = export_batch(Ledger(place), out, to, Selection(top_k, min_gap))
    tell(f"{out}: {count} rows")


app = typer.Typer(cls=PromptsOrCommand, no_args_is_help=True, rich_markup_mode="markdown")
app.command()(make)
app.command()(status)
app.command()(retry)
app.command()(score)
app.command()(export)
