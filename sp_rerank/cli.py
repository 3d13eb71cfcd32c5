"""The command line: words in, one call of the library, words out.

No logic, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import shlex
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_rerank.errors import NothingUsableError, SpRerankError, TryAgainError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from sp_rerank.existing import RankedFile
    from sp_rerank.generation import Progress

app = typer.Typer(
    help="Make N candidates for a prompt, rank them with a model of human preference, keep the best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
bench_app = typer.Typer(help="Measure this machine, interleaved, medians.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")
scorers_app = typer.Typer(
    help="List the scorers, or convert a published checkpoint into one.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(scorers_app, name="scorers")

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, for programs")]
ScorerOption = Annotated[str, typer.Option(help="what ranks: a name from `sp-rerank scorers`, or sp@FOLDER")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto: the accelerator where there is one")]
Dtype = Annotated[str, typer.Option(help="float32, float16, bfloat16 or auto: half where it is fast")]


def main() -> None:
    """Run the command line; the process ends with the exit code of the README's table."""
    try:
        code = app(standalone_mode=False)
    except SpRerankError as error:
        say(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        code = _exit_code(error)
    sys.exit(code or 0)


def _exit_code(error: Exception) -> int:
    """The code of an error that is not ours; one that nobody foresaw is a bug, and shows its traceback."""
    if type(error).__name__ == "OutOfMemoryError":
        say(f"error: out of memory: {error}; try --dtype float16, a smaller --batch-size or --device cpu")
        return TryAgainError.exit_code
    if type(error).__name__ == "Abort":
        return 130
    show = getattr(error, "format_message", None)
    if show is None:
        raise error
    say(f"error: {show()}")
    return getattr(error, "exit_code", 2)


def console(*, out: bool = False) -> Console:
    """The one place that prints: messages to standard error, results to standard output."""
    from rich.console import Console

    return Console(stderr=not out, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line of text as it is: no markup, no control characters."""
    console().print(plain(text), markup=False)


def tell(text: str) -> None:
    """Print a line of a result, likewise."""
    console(out=True).print(plain(text), markup=False)


def plain(text: str) -> str:
    """Text that a terminal shows and does not obey: control and format characters become spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"warning: {record.getMessage()}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Our own log to the console; the libraries' bars and remarks off."""
    import warnings

    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    for library in (diffusers_log, transformers_log):
        library.set_verbosity_error()
        library.disable_progress_bar()
    handler, log = _Warnings(), logging.getLogger("sp_rerank")
    log.addHandler(handler)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.removeHandler(handler)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what the image should show; after -- if it starts with a dash")],
    n: Annotated[int, typer.Option(help="candidates to make")] = 100,
    top_k: Annotated[int, typer.Option(help="how many of the best to keep in top/")] = 4,
    model: Annotated[str, typer.Option(help="mini, sd-v1.4, a folder, a repository, or auto")] = "auto",
    scorer: ScorerOption = "sp",
    search: Annotated[str, typer.Option(help="how the budget is spent")] = "exhaustive",
    steps: Annotated[int | None, typer.Option(help="of the scheduler  [default: what suits the model]")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="  [default: what suits the model]")] = None,
    scheduler: Annotated[str | None, typer.Option(help="another scheduler of diffusers, such as DDIM")] = None,
    height: Annotated[int | None, typer.Option(help="pixels  [default: the model's own]")] = None,
    width: Annotated[int | None, typer.Option(help="pixels  [default: the model's own]")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what the image should not show")] = None,
    safety_checker: Annotated[bool, typer.Option(help="where the checkpoint has one")] = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(help="images at once  [default: what suits]")] = None,
    seed: Annotated[int, typer.Option(help="of the first candidate; the others follow")] = 0,
    out: Annotated[Path | None, typer.Option(help="run folder  [default: runs/PROMPT-HASH]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a run that was cut short")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="refuse a prompt too long to be read whole")] = False,
    as_json: Json = False,
) -> None:
    """Make N candidates for a prompt and keep the best."""
    from sp_rerank import generation, models
    from sp_rerank.run import run_folder_name

    generation.check_arguments(
        prompt, n=n, seed=seed, batch_size=batch_size, search=search, steps=steps, guidance_scale=guidance_scale,
        negative_prompt=negative_prompt, height=height, width=width,
    )  # fmt: skip
    if not 1 <= top_k <= n:
        raise UsageError(f"--top-k is {top_k}; expected 1 to {n}, the number of candidates")
    began = time.monotonic()
    with _quiet():
        pipe = _load_pipeline(model, device, dtype, scheduler, safety_checker)
        ranker = _load_scorer(scorer, models.model_of(pipe), str(pipe.device))
        config = generation.configure(
            prompt, pipe=pipe, scorer=ranker, n=n, seed=seed, batch_size=batch_size, search=search, steps=steps,
            guidance_scale=guidance_scale, negative_prompt=negative_prompt, height=height, width=width, strict=strict,
        )  # fmt: skip
        folder = out or Path("runs") / run_folder_name(config)
        with _progress(n) as progress, _stop_on_interrupt() as stop:
            try:
                best = generation.carry_out(
                    config,
                    pipe=pipe,
                    scorer=ranker,
                    top_k=top_k,
                    out=folder,
                    resume=resume,
                    progress=progress,
                    stop=stop,
                )
            except KeyboardInterrupt:
                say(f"stopped; what is done is kept. Go on with: {_resume_command()}")
                raise
    _report(best, folder, ranker.name, time.monotonic() - began, as_json)


def _report(best: list[Any], folder: Path, scorer: str, seconds: float, as_json: bool) -> None:
    from sp_rerank.run import RunDir

    run = RunDir.read(folder)
    statuses = [row.status for row in run.rows.values()]
    lost = {status: statuses.count(status) for status in ("flagged", "nonfinite")}
    files = [folder / "top" / f"{r.rank:02d}_seed{r.candidate.seed}.png" for r in best]
    if as_json:
        rows = [
            {"rank": r.rank, "index": r.candidate.index, "seed": r.candidate.seed, "score": r.score, "file": str(file)}
            for r, file in zip(best, files, strict=True)
        ]
        prompt = run.config["prompt"]
        _print_json({"run": str(folder), "prompt": prompt, "scorer": scorer, "n": run.n, **lost, "best": rows})
        return
    for r, file in zip(best, files, strict=True):
        tell(f"{r.rank:3d}  {r.score:8.4f}  seed {r.candidate.seed:<6d} {file}")
    if any(lost.values()):
        say(f"left out: {lost['flagged']} replaced by the safety checker, {lost['nonfinite']} not finite")
    say(f"{run.n} candidates in {seconds:.1f} s; all of them, in order: {folder / 'grid.png'}")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _load_pipeline(model: str, device: str, dtype: str, scheduler: str | None, safety_checker: bool) -> Any:
    from sp_rerank import models

    found = models.find_device(device)
    spec, why = models.find_model(model, found)
    if why:
        say(why)
    precision = models.find_dtype(dtype, spec, found)
    return models.load_pipeline(spec, device=found, dtype=precision, scheduler=scheduler, safety_checker=safety_checker)


def _load_scorer(spec: str, model: str | None, device: str) -> Any:
    """A scorer in float32: half precision would reorder candidates that are close."""
    from sp_rerank import scorers

    if spec == "sp":
        spec, why = scorers.resolve_sp(model)
        say(why)
    return scorers.load_scorer(spec, device=device)


def _resume_command() -> str:
    """The command that was typed, with --resume, safe to paste into a shell."""
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:at] if word != "--resume"]
    return " ".join(["sp-rerank", *map(_quoted, [*options, "--resume", *words[at:]])])


def _quoted(word: str) -> str:
    """A word for a shell; one with control characters in the form that bash and zsh undo."""
    if plain(word) == word:
        return shlex.quote(word)
    return "$'" + word.encode("unicode_escape").decode().replace("'", "\\'") + "'"


@contextmanager
def _progress(n: int) -> Iterator[Callable[[Progress], None]]:
    """One bar: how many, how fast, how good so far."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    texts = [TextColumn(f"{{task.{what}}}") for what in ("completed", "total", "fields[rate]", "fields[best]")]
    screen, began = console(), time.monotonic()
    with Bar(
        texts[0], BarColumn(), texts[1], texts[2], TimeRemainingColumn(), texts[3],
        console=screen, transient=True, disable=not screen.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=n, rate="", best="")

        def show(progress: Progress) -> None:
            rate = progress.made / (time.monotonic() - began)
            best = "" if math.isnan(progress.best) else f"best {progress.best:.4f}"
            bar.update(task, completed=progress.done, rate=f"{rate:.1f} images/s", best=best)

        yield show


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C once lets the batch in hand be finished, twice stops at once."""
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("finishing the batch in hand; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@app.command()
def rank(
    folder: Annotated[Path, typer.Argument(help="with the images, PNG, JPEG, WebP and the like")],
    prompt: Annotated[str, typer.Option(help="what the images should show")],
    scorer: Annotated[
        list[str], typer.Option(help="what ranks, as in generate; given again, more columns beside the first")
    ] = ["sp"],  # noqa: B006  # typer reads it, and passes a new list
    top_k: Annotated[int | None, typer.Option(help="show only the best  [default: all]", min=1)] = None,
    device: Device = "auto",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print the result as CSV")] = False,
) -> None:
    """Rank images that exist already."""
    from sp_rerank import existing, models
    from sp_rerank.images import find_images

    if not prompt.strip():
        raise UsageError("the prompt is empty; expected words that say what the images should show")
    nothing = NothingUsableError(
        f"no image in {folder} could be read; expected PNG, JPEG, WebP, BMP, GIF or TIFF files"
    )
    found = find_images(folder)
    if not found:  # said before a scorer is loaded, or even downloaded
        raise nothing
    with _quiet():
        hardware = models.find_device(device)
        rankers = [_load_scorer(spec, None, hardware) for spec in scorer]
        ranked, unreadable = existing.rank_files(rankers, prompt, found, top_k)
    for error in unreadable:
        say(f"skipped: {error}")
    if unreadable:
        say(f"skipped {len(unreadable)} of {len(found)} images")
    if not ranked:
        raise nothing
    if as_json:
        _print_json({
            "prompt": prompt,
            "scorer": next(iter(ranked[0].scores)),
            "scorers": list(ranked[0].scores),
            "skipped": [str(error) for error in unreadable],
            "ranking": [_rank_row(r) for r in ranked],
        })
    elif as_csv:
        _print_csv(ranked)
    else:
        _print_ranking(ranked)


def _rank_row(ranked: RankedFile) -> dict[str, Any]:
    """For JSON and CSV; "score" is the first scorer's, None where it is not finite."""
    scores = {name: score if math.isfinite(score) else None for name, score in ranked.scores.items()}
    first = next(iter(scores.values()))
    return {"rank": ranked.rank, "score": first, "file": str(ranked.file), "scores": scores, "ranks": ranked.ranks}


def _print_csv(ranked: list[RankedFile]) -> None:
    """One line a file: rank and score by the first scorer, then score and rank by each further one."""
    others = list(ranked[0].scores)[1:]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [f"{what} {plain(name)}" for name in others for what in ("score", "rank")]
    writer.writerow(["rank", "score", "file", *columns])
    for row in map(_rank_row, ranked):
        further = [row[what][name] for name in others for what in ("scores", "ranks")]
        writer.writerow([row["rank"], row["score"], plain(row["file"]), *further])


def _print_ranking(ranked: list[RankedFile]) -> None:
    """One line a file; where there are several scorers, a header, and the rank by each further one in brackets."""
    names = list(ranked[0].scores)
    lines = [["rank", *names, "file"]] if len(names) > 1 else []
    for r in ranked:
        scores = [f"{score:.4f}" if math.isfinite(score) else "not finite" for score in r.scores.values()]
        ranks = ["", *(f" ({rank:d})" for rank in list(r.ranks.values())[1:])]
        lines.append([str(r.rank), *(f"{score}{rank}" for score, rank in zip(scores, ranks, strict=True)), str(r.file)])
    widths = [4, *(max(10, *(len(line[column]) for line in lines)) for column in range(1, len(names) + 1))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=False)]
        tell("  ".join([*cells, line[-1]]))


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="run folder")],
    index: Annotated[int, typer.Argument(help="of the candidate")],
    steps: Annotated[int | None, typer.Option(help="other than the run's own", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="PNG file  [default: RUN/replays/INDEX.png]")] = None,
    model: Annotated[str | None, typer.Option(help="where the model lies now  [default: as in the run]")] = None,
) -> None:
    """Make one candidate again: the same pixels on the same machine, or the same seed with other steps."""
    from sp_rerank import repetition
    from sp_rerank.run import RunDir

    folder = RunDir.read(run)
    config = folder.config
    if not config.keys() >= {"device", "dtype", "scheduler", "safety_checker"}:
        raise UsageError(f"{run / 'run.json'} does not say on what its images were made; it cannot be replayed")
    with _quiet():
        pipe = _load_pipeline(
            model or config["model"], config["device"], config["dtype"], config["scheduler"], config["safety_checker"]
        )
        target = out or run / "replays" / (f"{index:05d}.png" if steps is None else f"{index:05d}-{steps}steps.png")
        same = repetition.replay_to(folder, index, target, pipe=pipe, steps=steps)
    verdict = {None: "", True: "; every pixel is the same", False: "; the pixels differ: another machine or version?"}
    tell(f"{target}{verdict[same]}")


@app.command()
def verify(run: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """Check every file of a run folder against its manifest."""
    from sp_rerank.errors import StorageError
    from sp_rerank.run import RunDir

    folder = RunDir.read(run)
    problems = folder.verify()
    for problem in problems:
        tell(problem)
    done = f"{run}: {len(folder.rows)} of {folder.n} candidates"
    if problems:
        raise StorageError(f"{done}, {len(problems)} problems; --resume makes missing and changed images again")
    tell(f"{done}, every image as it was written")


@scorers_app.callback()
def scorers(context: typer.Context, as_json: Json = False) -> None:
    """List the scorers: name, size, scale of the score, licence, whether the weights are here."""
    if context.invoked_subcommand:
        return
    from sp_rerank.scorers import available_scorers

    rows = [
        {
            "name": entry.name,
            "size": entry.size,
            "scale": entry.scale,
            "licence": entry.licence,
            "here": entry.available(),
            "about": entry.summary,
        }
        for entry in available_scorers()
    ]
    if as_json:
        _print_json(rows)
        return
    lines = [[*rows[0]], *([{True: "yes", False: "no"}.get(cell, cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        tell("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@scorers_app.command("convert")
def scorers_convert(
    file: Annotated[Path, typer.Argument(help="the checkpoint as published: .pt, .bin, .pth or .safetensors")],
    as_name: Annotated[str, typer.Option("--as", help="which one it is, a name from `sp-rerank scorers`")],
    out: Annotated[Path | None, typer.Option(help="folder to write  [default: in the cache, found by name]")] = None,
) -> None:
    """Turn a published checkpoint into a scorer's folder of safetensors, once."""
    with _quiet():
        from sp_rerank.scorers.convert import checkpoint_name, convert

        folder = convert(file, as_name, out=out)
    tell(f"{checkpoint_name(folder)}  {folder}")


@app.command()
def doctor() -> None:
    """Check that everything that a run needs works on this machine."""
    from sp_rerank.doctor import examine

    failed = 0
    with _quiet():
        for finding in examine():
            failed += not finding.sound
            tell(f"{'ok ' if finding.sound else 'NO '} {finding.what}: {finding.found}")
    if failed:
        raise UsageError(f"{failed} of the checks failed, see above")


@bench_app.command("generate")
def bench_generate(
    n: Annotated[int, typer.Option(help="candidates", min=1)] = 100,
    rounds: Annotated[int, typer.Option(help="of each way, in turn", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """The whole command against a plain loop and a batched loop of diffusers, on the mini model."""
    from sp_rerank.bench import compare_generate

    with _quiet():
        _report_bench(compare_generate(n, rounds, say), as_json)


@bench_app.command("score")
def bench_score(
    n: Annotated[int, typer.Option(help="images", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="of each way, in turn", min=1)] = 3,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    as_json: Json = False,
) -> None:
    """Scoring with ViT-L/14 (random weights) against a loop in hpsv2's style and against batched transformers."""
    from sp_rerank.bench import compare_score

    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"--dtype is {dtype!r}; expected float32, bfloat16 or float16")
    with _quiet():
        _report_bench(compare_score(n, rounds, dtype, say), as_json)


@bench_app.command("precision")
def bench_precision(
    prompts: Annotated[int, typer.Option(help="of the mini world", min=1)] = 100,
    n: Annotated[int, typer.Option(help="candidates a prompt", min=5)] = 100,
    steps: Annotated[int, typer.Option(help="of the scheduler, for each candidate", min=1)] = 5,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16, against float32")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """How often clip-mini chooses the same four of n in half precision as in float32; 12 minutes on two cores."""
    from sp_rerank.bench import compare_precision

    if dtype not in ("bfloat16", "float16"):
        raise UsageError(f"--dtype is {dtype!r}; expected bfloat16 or float16")
    with _quiet():
        _report_bench(compare_precision(prompts, n, steps, dtype, say), as_json)


def _report_bench(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(result)
        return
    for key, value in result.items():
        tell(f"{key:44} {value}")
