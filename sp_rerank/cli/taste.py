"""The command `taste`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_rerank.cli.console import Device, Json, load_scorer, print_json, progress_bar, quiet, say, tell

if TYPE_CHECKING:
    from sp_rerank.choosing.consistency import Share
    from sp_rerank.train.taste import TasteReport


def taste(
    labels: Annotated[Path, typer.Argument(help="Answers: the file that label keeps, or any preference data.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new scorer.")],
    base: Annotated[str, typer.Option(help="Scorer that it builds on; one with embeddings of images.")] = "sp",
    annotator: Annotated[str | None, typer.Option(help="Whose answers.  [default: everyone's]")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder to look for images in that were moved.  [default: where they were]")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make a scorer of your own taste out of your answers, in seconds."""
    from sp_rerank import scorers
    from sp_rerank.diffusion.loading import find_device

    with quiet():
        from sp_rerank.train import taste as fitting
        from sp_rerank.train.head import fit
        from sp_rerank.train.readers import read_preferences

        fitting.check_place(out)
        groups = list(read_preferences(labels, images=images))
        if base == "sp":
            base, why = scorers.resolve_sp(None)
            say(why)
        scorer = load_scorer(base, None, find_device(device))
        count = len({(group.prompt, source) for group in groups for source in group.images})
        with progress_bar(count, "images") as progress:
            answers, people = fitting.read_answers(groups, scorer, annotator=annotator, progress=progress)
        head = fit(answers)
        fitting.check_told_from_chance(answers, head)
        found, fitted = fitting.report(answers, head, scorer.name)
        made = fitting.as_scorer(
            head, scorer, base_spec=base, out=out, source=f"{len(answers)} answers in {labels.name}"
        )
        fitting.write(made, fitted, out, data=labels.name)
    if as_json:
        print_json({"scorer": f"sp@{out}", "name": made.name, **_record(found)})
        return
    if len(people) > 1:
        counts = ", ".join(f"{who or 'unnamed'} {count}" for who, count in people.items())
        say(f"answers of {len(people)} people together: {counts}; one of them: --annotator NAME")
    for line in _lines(found):
        say(line)
    tell(f"sp@{out}")
    say(f'to use it: sp-rerank generate "..." --scorer sp@{out}')


def _lines(found: TasteReport) -> list[str]:
    base = found.base.partition("@")[0]
    lines = [
        f"{base} agreed with you in {_percent(found.base_last)}, your taste in {_percent(found.taste_last)} of the "
        f"last {found.taste_last.of} answers, each predicted from those before it"
    ]
    if found.taste_prompts is None:
        lines.append("one prompt only: how the taste does on other prompts cannot be estimated")
    else:
        lines.append(
            f"on prompts that it was not fitted on: {_percent(found.taste_prompts)} of {found.taste_prompts.of}, "
            f"{base} {_percent(found.base_all)}; {found.prompts} prompts"
        )
    if not found.variance:
        lines.append(f"the answers do not yet show where you differ from {base}: the taste orders images as it does")
    if not math.isfinite(found.temperature):
        lines.append("no calibration: a higher score of the taste says nothing on prompts that it was not fitted on")
    return lines


def _percent(share: Share) -> str:
    low, high = (round(100 * end) for end in share.interval)
    return f"{round(100 * share.value)} % [{low}, {high}]" if share.of else "none"


def _record(found: TasteReport) -> dict[str, Any]:
    """For JSON: shares as counts, and None for what is not known."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(found).items()
    }
