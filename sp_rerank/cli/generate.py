"""The commands that make and read run folders: generate, replay, verify."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_rerank.cli.console import (
    Device,
    Dtype,
    Json,
    ScorerOption,
    console,
    load_scorer,
    plain,
    print_json,
    quiet,
    say,
    stop_on_interrupt,
    tell,
)
from sp_rerank.errors import UsageError

if TYPE_CHECKING:
    from sp_rerank.generate import Progress

Also = Annotated[list[str], typer.Option(help="another scorer whose scores are kept too; repeatable")]


def generate(
    prompt: Annotated[str, typer.Argument(help="what the image should show; after -- if it starts with a dash")],
    n: Annotated[int, typer.Option(help="candidates to make")] = 100,
    top_k: Annotated[int, typer.Option(help="how many of the best to keep in top/")] = 4,
    diverse: Annotated[bool, typer.Option("--diverse", help="keep good ones that are no near-copies")] = False,
    model: Annotated[str, typer.Option(help="mini, sd-v1.4, a folder, a repository, or auto")] = "auto",
    scorer: ScorerOption = "sp",
    also: Also = [],  # noqa: B006  # typer reads it, and passes a new list
    search: Annotated[str, typer.Option(help="exhaustive, fast, steering, or a file of plan")] = "exhaustive",
    record: Annotated[bool, typer.Option("--record", help="score every draft and preview too, for plan")] = False,
    until: Annotated[str | None, typer.Option(help='stop when it is so sure to have the best: "p>0.9"')] = None,
    max_evaluations: Annotated[int | None, typer.Option(help="stop before the denoiser is called more often")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="stop with the batch in which they are over")] = None,
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
    from sp_rerank.config import check_arguments, configure
    from sp_rerank.diffusion import loading
    from sp_rerank.generate import carry_out
    from sp_rerank.run.folder import run_folder_name

    settings: dict[str, Any] = {
        "n": n, "top_k": top_k, "seed": seed, "batch_size": batch_size, "search": search, "record": record,
        "until": until, "max_evaluations": max_evaluations, "max_seconds": max_seconds, "steps": steps,
        "guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "height": height, "width": width,
    }  # fmt: skip
    check_arguments(prompt, **settings)
    began = time.monotonic()
    with quiet():
        pipe = _load_pipeline(model, device, dtype, scheduler, safety_checker)
        ranker, *others = (load_scorer(name, loading.model_of(pipe), str(pipe.device)) for name in [scorer, *also])
        config = configure(prompt, pipe=pipe, scorer=ranker, also=others, strict=strict, **settings)
        folder = out or Path("runs") / run_folder_name(config)
        with _progress(n) as progress, stop_on_interrupt() as stop:
            try:
                best = carry_out(
                    config,
                    pipe=pipe,
                    scorer=ranker,
                    also=others,
                    top_k=top_k,
                    diverse=diverse,
                    out=folder,
                    resume=resume,
                    progress=progress,
                    stop=stop,
                )
            except KeyboardInterrupt:
                say(f"stopped; what is done is kept. Go on with: {_resume_command()}")
                raise
    _report(best, folder, ranker, time.monotonic() - began, as_json)


def _report(best: list[Any], folder: Path, scorer: Any, seconds: float, as_json: bool) -> None:
    from sp_rerank.run.folder import RunDir

    run = RunDir.read(folder)
    statuses = [row.status for row in run.rows.values()]
    lost = {status: statuses.count(status) for status in ("flagged", "nonfinite", "dropped")}
    files = [folder / "top" / f"{r.rank:02d}_seed{r.candidate.seed}.png" for r in best]
    if as_json:
        rows = [
            {"rank": r.rank, "index": r.candidate.index, "seed": r.candidate.seed, "score": r.score,
             "tie_group": r.tie_group, "file": str(file)}
            for r, file in zip(best, files, strict=True)
        ]  # fmt: skip
        print_json({
            "run": str(folder), "prompt": run.config["prompt"], "scorer": scorer.name, "n": run.n,
            "made": len(run.rows), "unet_evaluations": run.spent,
            "unet_evaluations_exhaustive": run.evaluations_each * run.n, **lost, "best": rows,
        })  # fmt: skip
        return
    for r, file in zip(best, files, strict=True):
        tell(f"{r.rank:3d}  {r.score:8.4f}  seed {r.candidate.seed:<6d} {file}")
    for remark in _remarks(run, best, scorer, seconds):
        say(remark)
    if lost["flagged"] or lost["nonfinite"]:
        say(f"left out: {lost['flagged']} replaced by the safety checker, {lost['nonfinite']} not finite")
    say(f"{len(run.rows)} candidates in {seconds:.1f} s; look at all of them: {folder / 'index.html'}")


def _remarks(run: Any, best: list[Any], scorer: Any, seconds: float) -> Iterator[str]:
    """What is worth knowing of the result: who is not told apart, what a search spared, why a run ended early."""
    from sp_rerank.scorers.calibration import calibration_of
    from sp_rerank.stats import diversity, stopping

    known = calibration_of(scorer)
    tied = sum(r.tie_group == best[0].tie_group for r in best)
    if known is None:
        yield f"{scorer.name.split('@')[0]} has no calibration: how sure this order is, is not known"
    elif tied > 1:
        simulated = " (calibrated on simulated people)" if known.simulated else ""
        yield f"the first {tied} are not told apart{simulated}"
    finished = {index: row for index, row in run.rows.items() if row.status != "dropped"}
    scores = [math.nan if (score := row.scores[scorer.name]) is None else score for row in finished.values()]
    cost = diversity.score_cost(scores, [list(finished).index(r.candidate.index) for r in best])
    if cost > 0:
        yield f"chosen to differ; on average they score {cost:.4f} less than the best {len(best)}"
    search, spent, all_of_them = run.config.get("search"), run.spent, run.evaluations_each * run.n
    if spent < all_of_them:
        dropped = len(run.rows) - len(finished)
        yield (
            f"{spent:,} evaluations of the denoiser instead of {all_of_them:,}, {all_of_them / spent:.1f}x fewer"
            + (f": {dropped} candidates were dropped on the way" if dropped else "")
        )
    else:
        yield f"{spent:,} evaluations of the denoiser"
    if isinstance(search, dict) and search["strategy"] == "steering":
        yield "steered: these images descend from others of their batch, and no seed alone makes one again"
    if run.missing:
        why = stopping.reason_to_stop(
            run.config["stop"], scores, run.n, margin=known.margin if known else 0.0, spent=spent,
            next_batch=min(run.config["batch_size"], len(run.missing)) * run.evaluations_each, seconds=seconds,
        )  # fmt: skip
        yield f"ended after {len(run.rows)} of {run.n}: {why}"


def _load_pipeline(model: str, device: str, dtype: str, scheduler: str | None, safety_checker: bool) -> Any:
    from sp_rerank.diffusion import loading

    found = loading.find_device(device)
    spec, why = loading.find_model(model, found)
    if why:
        say(why)
    precision = loading.find_dtype(dtype, spec, found)
    return loading.load_pipeline(
        spec, device=found, dtype=precision, scheduler=scheduler, safety_checker=safety_checker
    )


def replay(
    run: Annotated[Path, typer.Argument(help="run folder")],
    index: Annotated[int, typer.Argument(help="of the candidate")],
    steps: Annotated[int | None, typer.Option(help="other than the run's own", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="PNG file  [default: RUN/replays/INDEX.png]")] = None,
    model: Annotated[str | None, typer.Option(help="where the model lies now  [default: as in the run]")] = None,
) -> None:
    """Make one candidate again: the same pixels on the same machine, or the same seed with other steps."""
    from sp_rerank.replay import replay_to
    from sp_rerank.run.folder import RunDir

    folder = RunDir.read(run)
    config = folder.config
    if not config.keys() >= {"device", "dtype", "scheduler", "safety_checker"}:
        raise UsageError(f"{run / 'run.json'} does not say on what its images were made; it cannot be replayed")
    with quiet():
        pipe = _load_pipeline(
            model or config["model"], config["device"], config["dtype"], config["scheduler"], config["safety_checker"]
        )
        target = out or run / "replays" / (f"{index:05d}.png" if steps is None else f"{index:05d}-{steps}steps.png")
        same = replay_to(folder, index, target, pipe=pipe, steps=steps)
    verdict = {None: "", True: "; every pixel is the same", False: "; the pixels differ: another machine or version?"}
    tell(f"{target}{verdict[same]}")


def verify(run: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """Check every file of a run folder against its manifest."""
    from sp_rerank.errors import StorageError
    from sp_rerank.run.folder import RunDir

    folder = RunDir.read(run)
    problems = folder.verify()
    for problem in problems:
        tell(problem)
    done = f"{run}: {len(folder.rows)} of {folder.n} candidates"
    if problems:
        raise StorageError(f"{done}, {len(problems)} problems; --resume makes missing and changed images again")
    tell(f"{done}, every image as it was written")


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
            best = progress.stage or ("" if math.isnan(progress.best) else f"best {progress.best:.4f}")
            bar.update(task, completed=progress.done, total=progress.total, rate=f"{rate:.1f} images/s", best=best)

        yield show
