"""The commands that measure scorers: evaluate, robustness, paper-tables, correlate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from sp_rerank.cli.console import (
    Device,
    Json,
    check_words,
    complete_run,
    complete_scorer,
    load_scorer,
    plain,
    print_json,
    progress_bar,
    quiet,
    say,
    tell,
)
from sp_rerank.errors import UsageError

Scorers = Annotated[
    list[str],
    typer.Option(
        "--scorer",
        help="A scorer, as in rank. Repeat it for more rows in the tables.",
        autocompletion=complete_scorer,
    ),
]
Data = Annotated[
    list[Path], typer.Option(help="Preferences: a file, or a folder with one. Repeat it for more data sets.")
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder that the image paths of --data start from, one for each.  [default: the folder of the data]"
    ),
]
LayoutOption = Annotated[
    str | None, typer.Option(help="Layout of the data, see docs/preference-data.md.  [default: by their columns]")
]
BatchSize = Annotated[int, typer.Option(help="Images scored at once.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)]
Out = Annotated[Path | None, typer.Option(help="Folder to write JSON, Markdown and an SVG plot into.")]


def evaluate(
    data: Data,
    scorer: Scorers = ["sp"],  # noqa: B006  # typer reads it, and passes a new list
    images: Images = None,
    layout: LayoutOption = None,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    keep_calibration: Annotated[
        bool, typer.Option("--keep-calibration", help="Write calibration.json beside each scorer's weights.")
    ] = False,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Note in the calibration that the people of --data are simulated.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how often scorers order images as people do: accuracy, margins, ties, calibration."""
    from sp_rerank.scorers import calibration
    from sp_rerank.train import evaluate as measure
    from sp_rerank.train import tables

    if keep_calibration and len(data) > 1:
        raise UsageError(f"--keep-calibration was given with {len(data)} --data; expected one, a scorer has one")
    if simulated and not keep_calibration:
        raise UsageError("--simulated says something about a calibration; expected it with --keep-calibration")

    def measured(ranker: Any, groups: Any, **how: Any) -> Any:
        result = measure.evaluate(ranker, groups, **how)
        if keep_calibration:
            file = calibration.keep(ranker, result.calibration, data=result.data, simulated=simulated)
            say(f"written: {file}")
        return result

    _prepare(out)
    results = _measure(measured, data, scorer, images, layout, batch_size, seed, device)
    _report(results, as_json, out, "evaluation", tables.markdown(results), tables.reliability_plot)


def robustness(
    data: Data,
    scorer: Scorers = ["sp"],  # noqa: B006  # as above
    images: Images = None,
    layout: LayoutOption = None,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure how much a scorer's order changes when images are mirrored and cropped."""
    from sp_rerank.train import robustness as measure

    _prepare(out)
    results = _measure(measure.robustness, data, scorer, images, layout, batch_size, seed, device)
    _report(results, as_json, out, "robustness", measure.markdown(results), measure.sensitivity_plot)


def paper_tables(
    data: Data,
    scorer: Scorers = ["sp"],  # noqa: B006  # as above
    images: Images = None,
    layout: LayoutOption = None,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Make the paper's tables for your scorers and data: accuracy beside people's, and under HP&CC."""
    from sp_rerank.train import paper_tables as measure
    from sp_rerank.train import robustness

    def plot(rows: Any) -> bytes:
        return robustness.sensitivity_plot([row.robustness for row in rows])

    _prepare(out)
    rows = _measure(measure.paper_row, data, scorer, images, layout, batch_size, seed, device)
    _report(rows, as_json, out, "paper-tables", measure.markdown(rows), plot)


def correlate(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or JSON lists of generator, prompt and image.", autocompletion=complete_run),
    ],
    scorer: Annotated[
        list[str],
        typer.Option("--scorer", help="One of the two scorers; give it twice.", autocompletion=complete_scorer),
    ],
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure whether two scorers agree about which generator is better."""
    from sp_rerank.diffusion import loading
    from sp_rerank.train import correlation as measure

    if len(scorer) != 2:
        raise UsageError(f"--scorer was given {len(scorer)} times; expected two scorers to compare")
    check_words(device=device)
    _prepare(out)
    made = measure.read_made(runs)
    with quiet():
        hardware = loading.find_device(device)
        first, second = (load_scorer(spec, None, hardware) for spec in scorer)
        with progress_bar(2 * len(made), "scores") as progress:
            result = measure.correlate((first, second), made, batch_size=batch_size, seed=seed, progress=progress)
    text = measure.markdown(result)
    _report(result, as_json, out, "correlation", text, measure.scatter_plot)


def _measure(
    measure: Callable[..., Any],
    data: Sequence[Path],
    scorers: Sequence[str],
    images: Sequence[Path] | None,
    layout: str | None,
    batch_size: int,
    seed: int,
    device: str,
) -> list[Any]:
    """One result a scorer and data set."""
    from sp_rerank.diffusion import loading
    from sp_rerank.train.readers import read_preferences

    if len(set(scorers)) < len(scorers) or len(set(data)) < len(data):
        raise UsageError("a --scorer or --data was given twice; expected each once")
    if images and len(images) != len(data):
        raise UsageError(f"--images was given {len(images)} times for {len(data)} --data; expected one each, or none")
    check_words(device=device)
    sets = list(zip(data, images or [None] * len(data), strict=True))
    results = []
    with quiet():
        # Read through once without the images, before a scorer is loaded: then the data are known to be sound.
        sizes = [[len(group.images) for group in read_preferences(*data_set, layout)] for data_set in sets]
        hardware = loading.find_device(device)
        for spec in scorers:
            ranker = load_scorer(spec, None, hardware)
            for (place, folder), size in zip(sets, sizes, strict=True):
                groups = islice(
                    read_preferences(place, folder, layout), len(size)
                )  # up to its warnings, which were given
                with progress_bar(sum(size), "images") as progress:
                    result = measure(
                        ranker, groups, data=str(place), batch_size=batch_size, seed=seed, progress=progress
                    )
                if result.skipped:
                    say(f"skipped {len(result.skipped)} of {sum(size)} images of {place}: they cannot be read")
                results.append(result)
    return results


def _prepare(out: Path | None) -> None:
    """Make the folder, and raise what would otherwise be found out after an hour of scoring."""
    from sp_rerank.report.tables import new_figure
    from sp_rerank.storage import atomic

    if out:
        new_figure()
        with atomic.storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)


def _report(results: Any, as_json: bool, out: Path | None, name: str, text: str, plot: Callable[[Any], bytes]) -> None:
    """Write what was found into a folder, and show it."""
    import json

    from sp_rerank.report.tables import to_json
    from sp_rerank.storage import atomic

    record = to_json(results)
    if out:
        atomic.write_all({
            out / f"{name}.json": (json.dumps(record, indent=2, allow_nan=False) + "\n").encode(),
            out / f"{name}.md": text.encode("utf-8", "replace"),
            out / f"{name}.svg": plot(results),
        })
        say(f"written: {name}.json, {name}.md and {name}.svg in {out}")
    if as_json:
        print_json(record)
    else:
        for line in text.splitlines():
            tell(plain(line))
