"""What the commands share: one place that prints, the libraries kept quiet, options that mean the same everywhere."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sp_rerank.config import CheckpointOptions


def complete_scorer(begun: str) -> Iterator[tuple[str, str]]:
    """What a shell offers for the name of a scorer that is begun, each with a line about it."""
    from sp_rerank.scorers import available_scorers

    for entry in available_scorers():
        if entry.name.startswith(begun):
            yield entry.name, entry.summary


def complete_run(begun: str) -> Iterator[str]:
    """What a shell offers for a run folder that is begun: run folders, and folders in which there may be some."""
    from sp_rerank.run.layout import CONFIG

    head, _, tail = begun.rpartition("/")
    folder = Path(f"{head}/" if head or begun.startswith("/") else ".")
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.name.startswith(tail) and path.is_dir() and not path.name.startswith("."):
                yield f"{begun.removesuffix(tail)}{path.name}{'' if (path / CONFIG).is_file() else '/'}"


MODEL_VARIABLE = "SP_RERANK_MODEL"
SCORER_VARIABLE = "SP_RERANK_SCORER"
DEVICE_VARIABLE = "SP_RERANK_DEVICE"
OUT_VARIABLE = "SP_RERANK_OUT"
"""Environment variables that stand in for options that are not given."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]
ScorerOption = Annotated[
    str,
    typer.Option(
        help="Ranks the candidates: a name of `sp-rerank scorers`, sp@FOLDER for a trained one, a+b for several.",
        autocompletion=complete_scorer,
        envvar=SCORER_VARIABLE,
    ),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, mps, or auto: the accelerator if there is one.", envvar=DEVICE_VARIABLE)
]
PushToHub = Annotated[
    str | None,
    typer.Option(metavar="OWNER/NAME", help="Upload the result to this repository of the hub; a new one is private."),
]
Dtype = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: half precision where it is fast.")]


def console(*, out: bool = False) -> Console:
    """The one place that prints: messages to standard error, results to standard output."""
    from rich.console import Console

    return Console(stderr=not out, highlight=False, soft_wrap=True, emoji=False)


def say(text: str) -> None:
    """Print a line of text as it is: no markup, no control characters."""
    console().print(plain(text), markup=False, emoji=False)


def tell(text: str) -> None:
    """Print a line of a result as it is: no markup, no control characters."""
    console(out=True).print(plain(text), markup=False, emoji=False)


def plain(text: str) -> str:
    """Text that a terminal shows and does not obey: control and format characters become spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def print_json(value: Any) -> None:
    """Print a result for programs."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"warning: {record.getMessage()}" if record.levelno >= logging.WARNING else record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Our own log to the console; the libraries' bars and remarks off."""
    import warnings

    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    for library in (diffusers_log, transformers_log):
        library.set_verbosity_error()
        library.disable_progress_bar()
    handler, log, hub = _Log(), logging.getLogger("sp_rerank"), logging.getLogger("sp_rerank.storage.hub")
    log.addHandler(handler)
    level = hub.level
    hub.setLevel(logging.INFO)  # what is about to be downloaded
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        hub.setLevel(level)
        log.removeHandler(handler)


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM once lets the batch in hand be finished, twice stops at once.

    Raises:
        KeyboardInterrupt: As the body raised it, after Ctrl-C.
        typer.Exit: With code 143, after SIGTERM.
    """
    received = 0

    def ask(number: int, _: Any) -> None:
        nonlocal received
        received = number
        signal.signal(number, signal.default_int_handler)
        say(f"finishing the batch in hand; {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'} again stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    except KeyboardInterrupt as stop:
        if received == signal.SIGTERM:
            raise typer.Exit(143) from stop  # typer itself makes 130 of a KeyboardInterrupt
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def forgive_streams() -> None:
    """Let standard output and error take every character: what their encoding has not is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def close_output() -> None:
    """Write out what was printed; what cannot be written is not tried again as the interpreter ends.

    Raises:
        OSError: If it cannot be written, such as on a full disk or into a pipe that nothing reads.
    """
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
        raise


def discard_output() -> None:
    """Let standard output lead nowhere."""
    with suppress(OSError, ValueError):  # a stream that is no file has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """One bar: how many, how fast, how long."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console()
    with Progress(
        MofNCompleteColumn(), TextColumn(what), BarColumn(), TimeRemainingColumn(),
        console=screen, transient=True, disable=not screen.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def check_words(
    *, scorers: Iterable[str] = (), model: str | None = None, device: str = "auto", dtype: str = "auto"
) -> None:
    """Refuse words that are wrong whatever this machine has, before anything that takes seconds is imported.

    Raises:
        UsageError: Naming the first.
    """
    from sp_rerank.diffusion.hardware import check_device, check_dtype
    from sp_rerank.diffusion.loading import find_model
    from sp_rerank.scorers import check_spec

    check_device(device)
    check_dtype(dtype)
    if model is not None:
        find_model(model, "cpu")  # the device only decides what "auto" is
    for spec in scorers:
        check_spec(spec)


def load_scorer(spec: str, model: str | None, device: str, dtype: str = "float32") -> Any:
    """A scorer, in float32 unless asked otherwise: half precision reorders candidates that are close."""
    from sp_rerank import scorers
    from sp_rerank.diffusion.loading import find_dtype

    found, why = scorers.resolve_spec(spec, model)
    if why:
        say(why)
    return scorers.load_scorer(found, device=device, dtype=find_dtype(dtype, "", device))


def load_pipeline(
    model: str,
    device: str,
    dtype: str,
    scheduler: str | None,
    safety_checker: bool,
    checkpoint: CheckpointOptions,
    compiled: bool = False,
) -> Any:
    """The pipeline that the options name, with a line where the choice was ours."""
    from sp_rerank.diffusion import loading

    pipe, why = loading.open_pipeline(
        model,
        device=device,
        dtype=dtype,
        scheduler=scheduler,
        safety_checker=safety_checker,
        compiled=compiled,
        **checkpoint.keywords(),
    )
    if why:
        say(why)
    return pipe
