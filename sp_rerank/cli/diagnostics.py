"""The commands that look at this machine: doctor, and bench with its parts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sp_rerank.cli.console import Device, Json, check_words, print_json, quiet, say, tell
from sp_rerank.errors import UsageError


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
    model: Annotated[str, typer.Option(help="mini or sd-v1.4")] = "mini",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """A run, also with the search "fast", against a plain, a batched and a compiled loop of diffusers."""
    from sp_rerank.diagnostics.bench_generate import compare_generate
    from sp_rerank.diffusion.loading import MODELS, find_device

    if model not in MODELS:
        raise UsageError(f"--model is {model!r}; expected {' or '.join(MODELS)}")
    check_words(device=device)
    _report_bench(compare_generate(n, rounds, say, model=model, device=find_device(device)), as_json)


def bench_score(
    n: Annotated[int, typer.Option(help="images", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="of each way, in turn", min=1)] = 3,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    as_json: Json = False,
) -> None:
    """Scoring with ViT-L/14 (random weights) against a loop in hpsv2's style and against batched transformers."""
    from sp_rerank.diagnostics.bench_score import compare_score

    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"--dtype is {dtype!r}; expected float32, bfloat16 or float16")
    with quiet():
        _report_bench(compare_score(n, rounds, dtype, say), as_json)


def bench_rank(
    n: Annotated[int, typer.Option(help="image files", min=1)] = 200,
    rounds: Annotated[int, typer.Option(help="of each way, in turn", min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Ranking image files with a free scorer: one reading thread against one for each CPU, and the memory of many."""
    from sp_rerank.diagnostics.bench_rank import compare_rank

    _report_bench(compare_rank(n, rounds, say), as_json)


def bench_host(
    n: Annotated[int, typer.Option(help="candidates of the smaller run", min=1)] = 4000,
    times: Annotated[int, typer.Option(help="how many times as many the larger run has", min=2)] = 4,
    rounds: Annotated[int, typer.Option(help="of each size, in turn", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """What a run costs beside the denoiser: time and memory a candidate, with a free model and scorer."""
    from sp_rerank.diagnostics.bench_host import compare_host

    _report_bench(compare_host(n, times, rounds, say), as_json)


def _report_bench(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        tell(f"{key:44} {value}")
