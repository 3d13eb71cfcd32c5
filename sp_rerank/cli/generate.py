"""The command `generate`; its options are built from `sp_rerank.config.GenerationOptions`."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_rerank.cli.console import (
    MODEL_VARIABLE,
    OUT_VARIABLE,
    Device,
    Dtype,
    Json,
    ScorerOption,
    check_words,
    complete_scorer,
    load_pipeline,
    load_scorer,
    plain,
    print_json,
    quiet,
    say,
    stop_on_interrupt,
    tell,
)  # fmt: skip
from sp_rerank.config import PROMPT, SEARCHES, CheckpointOptions, GenerationOptions
from sp_rerank.errors import OptionError, UsageError

if TYPE_CHECKING:
    from sp_rerank.run.summary import RunResult
    from sp_rerank.types import Scorer

SHORT = {"n": "-n", "top_k": "-k"}
FLAGS = {"pipe_kwargs": "--set", "prompt": "the prompt", "loras": "--lora", "embeddings": "--embedding"}
"""Options whose flag is not their name."""

TYPES: dict[str, Any] = {"pipe_kwargs": list[str], "search": str, "loras": list[str], "embeddings": list[str]}
"""Options that are typed otherwise on a command line."""

Prompt = Annotated[str, typer.Argument(help="What the image should show. A prompt that begins with - comes after --.")]
Also = Annotated[
    list[str],
    typer.Option(help="Another scorer whose scores are kept too; repeatable.", autocompletion=complete_scorer),
]
Model = Annotated[
    str,
    typer.Option(
        help="mini, sd-v1.4, a folder, a file NAME.safetensors, a repository owner/name, or auto.",
        envvar=MODEL_VARIABLE,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Another scheduler: of diffusers, such as DDIM, or by AUTOMATIC1111's name, such as DPM++ 2M Karras.",
        rich_help_panel="Image",
    ),
]
SafetyChecker = Annotated[
    bool, typer.Option(help="Use the safety checker of the checkpoint, if it has one.", rich_help_panel="Image")
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the denoiser, for many images; other pixels.", rich_help_panel="Image"),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help=f"Run folder. [default: PROMPT-HASH in {OUT_VARIABLE}, or else in runs]"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut short.")]


def runs_folder() -> Path:
    """Where a run goes that has no `--out`: many runs share it, so it names no run itself."""
    return Path(os.environ.get(OUT_VARIABLE) or "runs")


def flag_of(option: str) -> str:
    """The flag of an option by its Python name: "guidance_scale" -> "--guidance-scale"."""
    return FLAGS.get(option, f"--{option.replace('_', '-')}")


def _parameter(option: Field[Any]) -> inspect.Parameter:
    """The command line's parameter of one option."""
    kind = TYPES.get(option.name, option.type)
    names = [flag_of(option.name), *([SHORT[option.name]] if option.name in SHORT else [])]
    shown = option.default not in (None, ()) and option.type != "bool"
    declared = typer.Option(
        *names, help=option.metadata["help"], rich_help_panel=option.metadata["group"], show_default=shown
    )
    default: Any = [] if kind == list[str] else option.default
    annotation = Annotated[_evaluated(kind), declared]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _evaluated(kind: Any) -> Any:
    """A field's type; `from __future__ import annotations` keeps it as text."""
    known = {"int": int, "float": float, "bool": bool, "str": str, "int | None": int | None}
    known |= {"float | None": float | None, "str | None": str | None}
    return known[kind] if isinstance(kind, str) else kind


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose `**options` are the tables of `CheckpointOptions` and `GenerationOptions`, for typer to see."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind != inspect.Parameter.VAR_KEYWORD
    ]
    tables = (*fields(CheckpointOptions), *fields(GenerationOptions))
    signature = inspect.Signature([*own, *map(_parameter, tables)])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: entry.annotation for name, entry in signature.parameters.items()}
    return command


def split_options(options: Mapping[str, Any]) -> tuple[GenerationOptions, CheckpointOptions]:
    """What is asked of the run, and what of the model, from the options of a command.

    Raises:
        OptionError: If a value is out of its range.
    """
    of_model = {entry.name for entry in fields(CheckpointOptions)}
    run = {name: value for name, value in options.items() if name not in of_model}
    checkpoint = CheckpointOptions(**{name: options[name] for name in of_model})
    return GenerationOptions(**{**run, "pipe_kwargs": assignments(run["pipe_kwargs"])}), checkpoint


@with_options
def generate(
    prompt: Prompt,
    model: Model = "auto",
    scorer: ScorerOption = "sp",
    also: Also = [],  # noqa: B006  # typer reads it, and passes a new list
    scheduler: Scheduler = None,
    safety_checker: SafetyChecker = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    compiled: Compile = False,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make N candidates for a prompt and keep the best."""
    from sp_rerank.generate import Job, run_search
    from sp_rerank.report.progress import run_progress
    from sp_rerank.run.opening import default_folder

    prompt = _read_prompt(prompt)
    asked, checkpoint = split_options(options)
    _check_before_loading(prompt, asked)
    check_words(scorers=[scorer, *also], model=model, device=device, dtype=dtype)
    began = time.monotonic()
    with quiet():
        from sp_rerank.diffusion.loading import model_of
        from sp_rerank.diffusion.placement import device_of
        from sp_rerank.scorers.ensemble import with_members
        from sp_rerank.search.resolve import resolve

        pipe = load_pipeline(model, device, dtype, scheduler, safety_checker, checkpoint, compiled)
        ranker, *others = (load_scorer(name, model_of(pipe), str(device_of(pipe))) for name in [scorer, *also])
        others = with_members(ranker, others)
        config = resolve(prompt, asked, pipe=pipe, scorer=ranker, also=others)
        folder = out or default_folder(runs_folder(), config, asked.more)
        with run_progress(config.n) as progress, stop_on_interrupt() as stop:
            try:
                job = Job(config, asked, pipe, ranker, others)
                result = run_search(job, out=folder, resume=resume, progress=progress, stop=stop)
            except KeyboardInterrupt:
                say(f"stopped; what is done is kept. Go on with: {_resume_command()}")
                raise
    if as_json:
        print_json(_record(prompt, result, ranker))
    else:
        _report(result, ranker, config.search.replayable, time.monotonic() - began)


def assignments(pairs: list[str]) -> Mapping[str, Any] | None:
    """Arguments of the pipeline from NAME=VALUE, the value as in JSON; a text may go without quotes."""
    import json

    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise OptionError("pipe_kwargs", pair, "NAME=VALUE such as eta=0.5")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found or None


def _read_prompt(given: str) -> str:
    """The prompt that was given; "-" takes the one line of standard input.

    Raises:
        UsageError: If standard input holds not exactly one line, or the prompt is the name of a file.
    """
    if given == "-":
        lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
        if len(lines) != 1:
            raise UsageError(f"standard input holds {len(lines)} lines; expected one, the prompt; run once for each")
        return lines[0]
    if _is_file(given):
        word = shlex.quote(given)
        raise UsageError(f'the prompt {given!r} is the name of a file; for the text in it give "$(cat {word})"')
    return given


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with characters that no name has
        return False


def _check_before_loading(prompt: str, asked: GenerationOptions) -> None:
    """What can be refused without a model: loading one takes seconds, or a download."""
    if not PROMPT.holds(prompt):
        raise OptionError("prompt", prompt, PROMPT.expected)
    check_search(asked)


def check_search(asked: GenerationOptions) -> None:
    """Refuse a search that is none, or a schedule file that cannot be read."""
    if asked.search not in SEARCHES:
        if not Path(asked.search).is_file():  # said here too, for reading one takes torch
            raise OptionError("search", str(asked.search), f"{', '.join(SEARCHES)}, or a schedule file that is there")
        from sp_rerank.search.schedule import read_schedule

        read_schedule(Path(asked.search))


def _files(result: RunResult) -> list[Path]:
    assert result.folder
    return [result.folder / "top" / f"{entry.rank:02d}_seed{entry.seed}.png" for entry in result]


def _record(prompt: str, result: RunResult, scorer: Scorer) -> dict[str, Any]:
    """The result for programs."""
    summary = result.summary
    return {
        "run": str(result.folder),
        "prompt": prompt,
        "scorer": scorer.name,
        "n": summary.n,
        "made": summary.made,
        "nfe": summary.nfe,
        "nfe_exhaustive": summary.nfe_exhaustive,
        "flagged": summary.flagged,
        "nonfinite": summary.nonfinite,
        "dropped": summary.dropped,
        "ended": {"by": summary.ended.by, "detail": summary.ended.detail},
        "best": [
            {
                "rank": entry.rank,
                "index": entry.candidate.index,
                "seed": entry.seed,
                "score": entry.score,
                "tie_group": entry.tie_group,
                "file": str(file),
            }
            for entry, file in zip(result, _files(result), strict=True)
        ],
    }


def _report(result: RunResult, scorer: Scorer, replayable: bool, seconds: float) -> None:
    summary = result.summary
    for entry, file in zip(result, _files(result), strict=True):
        tell(f"{entry.rank:3d}  {entry.score:8.4f}  seed {entry.seed:<6d} {file}")
    for remark in _remarks(result, scorer):
        say(remark)
    if not replayable:
        say("steered: these images descend from others of their batch, and no seed alone makes one again")
    if summary.flagged or summary.nonfinite:
        say(f"left out: {summary.flagged} replaced by the safety checker, {summary.nonfinite} not finite")
    assert result.folder
    say(f"{summary.made} candidates in {seconds:.1f} s; look at all of them: {result.folder / 'index.html'}")


def _remarks(result: RunResult, scorer: Scorer) -> Iterator[str]:
    """What is worth knowing of the result: ties, what a search spared, why a run ended early."""
    from sp_rerank.scorers.calibration import calibration_of
    from sp_rerank.stats.ranking import short_names

    summary, known = result.summary, calibration_of(scorer)
    tied = sum(entry.tie_group == result[0].tie_group for entry in result)
    if known is None:
        yield f"{short_names([scorer.name])[scorer.name]} has no calibration: how sure this order is, is not known"
    elif tied > 1:
        simulated = " (calibrated on simulated people)" if known.simulated else ""
        yield f"the first {tied} are not told apart{simulated}"
    if summary.score_cost > 0:
        yield f"chosen to differ; on average they score {summary.score_cost:.4f} less than the best {len(result)}"
    if summary.nfe < summary.nfe_exhaustive:
        fewer = f"{summary.nfe_exhaustive / summary.nfe:.1f}x fewer"
        dropped = f": {summary.dropped} candidates were dropped on the way" if summary.dropped else ""
        yield f"{summary.nfe:,} evaluations of the denoiser instead of {summary.nfe_exhaustive:,}, {fewer}{dropped}"
    else:
        yield f"{summary.nfe:,} evaluations of the denoiser"
    if summary.ended.by != "complete":
        yield f"ended after {summary.made} of {summary.n}: {summary.ended.detail}"


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
