"""The command line: words in, one call of the library, words out.

No logic, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from sp_rerank.cli import (
    batch,
    choosing,
    compare,
    diagnostics,
    evaluate,
    folders,
    gallery,
    generate,
    plan,
    rank,
    scorers,
    taste,
    train,
)
from sp_rerank.cli.console import close_output, discard_output, forgive_streams, say, tell
from sp_rerank.errors import OptionError, SpRerankError, StorageError, TryAgainError, is_out_of_memory

RENAMED = {"--until": '--confidence 0.9 for "p>0.9"'}
"""Options of earlier versions, for the error that names them."""

app = typer.Typer(
    help="Make N candidates for a prompt, rank them with a model of human preference, keep the best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        tell(f"sp-rerank {version('sp-rerank')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
]


@app.callback()
def options(version: Version = False) -> None:
    """Make N candidates for a prompt, rank them with a model of human preference, keep the best."""


for command in (
    generate.generate,
    rank.rank,
    plan.plan,
    compare.compare,
    gallery.gallery,
    choosing.label,
    choosing.pick,
    folders.replay,
    folders.verify,
    taste.taste,
    train.train,
    evaluate.evaluate,
    evaluate.robustness,
    evaluate.paper_tables,
    evaluate.correlate,
    diagnostics.doctor,
):
    app.command()(command)

scorers_app = typer.Typer(
    help="List the scorers, or convert a published checkpoint into one.",
    invoke_without_command=True,
    rich_markup_mode="markdown",
)
scorers_app.callback()(scorers.list_scorers)
scorers_app.command()(scorers.convert)
app.add_typer(scorers_app, name="scorers")

app.add_typer(batch.app, name="batch", help="Make N candidates for each of many prompts; how far they are; exports.")

bench_app = typer.Typer(
    help="Measure this machine, interleaved, medians.", no_args_is_help=True, rich_markup_mode="markdown"
)
for name, command in (
    ("generate", diagnostics.bench_generate),
    ("score", diagnostics.bench_score),
    ("rank", diagnostics.bench_rank),
    ("host", diagnostics.bench_host),
):
    bench_app.command(name)(command)
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Run the command line; the process ends with an exit code of docs/reference/exit-codes.md."""
    forgive_streams()
    try:
        code = app(standalone_mode=False)
        close_output()
    except OptionError as error:
        say(f"error: {error.spelled(generate.flag_of(error.name))}")
        code = error.exit_code
    except SpRerankError as error:
        say(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except (BrokenPipeError, SystemExit) as error:  # rich and typer end with 1 where `| head -1` has read enough
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        discard_output()
        code = 141
    except OSError as error:
        code = _disk_full(error)
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        code = _exit_code(error)
    sys.exit(code or 0)


def _disk_full(error: OSError) -> int:
    """The code of an error of standard output; any other is a bug."""
    if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise error
    discard_output()
    say(f"error: the output cannot be written: {error.strerror}; free some space, or write it elsewhere")
    return StorageError.exit_code


def _exit_code(error: Exception) -> int:
    """The code of an error that is not ours; one that was not foreseen is a bug, and shows its traceback."""
    if type(error).__name__ == "NoArgsIsHelpError":  # typer's, of a group without a command
        app([*sys.argv[1:], "--help"], standalone_mode=False)
        return 0
    if is_out_of_memory(error):
        say(f"error: out of memory: {error}; try --dtype float16, a smaller --batch-size or --device cpu")
        return TryAgainError.exit_code
    if type(error).__name__ == "Abort":  # typer's, of a KeyboardInterrupt
        return 130
    show = getattr(error, "format_message", None)
    if show is None:
        raise error
    renamed = RENAMED.get(getattr(error, "option_name", ""))
    say(f"error: {show()}" + (f" It is {renamed} now." if renamed else ""))
    return getattr(error, "exit_code", 2)
