"""The commands that look at this machine: doctor, and bench with its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sp_rerank.cli.console import Json, print_json, quiet, say, tell
from sp_rerank.errors import UsageError

RECORDINGS = Path("build/mini/search")


def doctor() -> None:
    """Check that everything that a run needs works on this machine."""
    from sp_rerank.diagnostics.doctor import examine

    failed = 0
    with quiet():
        for finding in examine():
            failed += not finding.sound
            tell(f"{'ok ' if finding.sound else 'NO '} {finding.what}: {finding.found}")
    if failed:
        raise UsageError(f"{failed} of the checks failed, see above")


def bench_generate(
    n: Annotated[int, typer.Option(help="candidates", min=1)] = 100,
    rounds: Annotated[int, typer.Option(help="of each way, in turn", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """The whole command against a plain loop and a batched loop of diffusers, on the mini model."""
    from sp_rerank.diagnostics.bench import compare_generate

    with quiet():
        _report_bench(compare_generate(n, rounds, say), as_json)


def bench_score(
    n: Annotated[int, typer.Option(help="images", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="of each way, in turn", min=1)] = 3,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    as_json: Json = False,
) -> None:
    """Scoring with ViT-L/14 (random weights) against a loop in hpsv2's style and against batched transformers."""
    from sp_rerank.diagnostics.bench import compare_score

    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"--dtype is {dtype!r}; expected float32, bfloat16 or float16")
    with quiet():
        _report_bench(compare_score(n, rounds, dtype, say), as_json)


def bench_precision(
    prompts: Annotated[int, typer.Option(help="of the mini world", min=1)] = 100,
    n: Annotated[int, typer.Option(help="candidates a prompt", min=5)] = 100,
    steps: Annotated[int, typer.Option(help="of the scheduler, for each candidate", min=1)] = 5,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16, against float32")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """How often clip-mini chooses the same four of n in half precision as in float32; 12 minutes on two cores."""
    from sp_rerank.diagnostics.bench import compare_precision

    if dtype not in ("bfloat16", "float16"):
        raise UsageError(f"--dtype is {dtype!r}; expected bfloat16 or float16")
    with quiet():
        _report_bench(compare_precision(prompts, n, steps, dtype, say), as_json)


def bench_train(
    steps: Annotated[int, typer.Option(help="training steps a round", min=1)] = 4,
    rounds: Annotated[int, typer.Option(help="of each way, in turn", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """A training step against a plain loop that encodes each pair by itself, with the same maths; 2 minutes."""
    from sp_rerank.train.bench import compare_train

    with quiet():
        _report_bench(compare_train(steps, rounds, say), as_json)


def bench_step(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or .toml file, its base a published dual encoder")],
    as_json: Json = False,
) -> None:
    """What a training step of a recipe costs in arithmetic and memory: counted, nothing is computed or loaded."""
    from sp_rerank.train.bench import count_step
    from sp_rerank.train.recipe import read_recipe

    plan = read_recipe(recipe)
    with quiet():
        _report_bench(count_step(plan), as_json)


def bench_search(
    out: Annotated[Path, typer.Option(help="folder of the recordings, made where they are missing")] = RECORDINGS,
    prompts: Annotated[int, typer.Option(help="to measure on", min=1)] = 100,
    jobs: Annotated[int, typer.Option(help="processes that record, a core each", min=1)] = 2,
    figure: Annotated[Path | None, typer.Option(help="SVG file of score against evaluations")] = None,
    as_json: Json = False,
) -> None:
    """What a search keeps and spares against all hundred candidates, to clip-mini and to the judge; an hour."""
    from sp_rerank.train.mini.experiments.search import compare_search

    with quiet():
        result = compare_search(out, prompts, jobs, figure, say)
    if as_json:
        print_json(result)
        return
    for name, figures in result.items():
        if isinstance(figures, dict):
            tell(name)
            _report_bench(figures, as_json)
        else:
            tell(f"{name:44} {figures}")


def _report_bench(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        tell(f"{key:44} {value}")
