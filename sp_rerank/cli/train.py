"""The command `train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sp_rerank.cli.console import Json, PushToHub, console, print_json, quiet, say, stop_on_interrupt, tell
from sp_rerank.errors import UsageError

if TYPE_CHECKING:
    from sp_rerank.train.loop import Outcome
    from sp_rerank.train.metrics import StepMetrics
    from sp_rerank.train.preferences import PreferenceGroup
    from sp_rerank.train.recipe import Recipe

FEW = 1000
"""Pairs below which a few weights on a scorer's embeddings learn more than its network does."""

SPLIT_SEED = 0
"""Decides which prompts are held out: the same for every seed of a recipe, so that runs can be compared."""


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, such as mini or clip-h, or a .toml file.")],
    data: Annotated[
        list[str],
        typer.Option(help="Preferences to learn from: a file, a folder with one, hub:OWNER/NAME. Repeat it for more."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the training run; the scorer is written to its best/.")],
    validation: Annotated[
        list[str],
        typer.Option(help="Preferences that choose the best step.  [default: a fraction of the prompts of --data]"),
    ] = [],  # noqa: B006  # typer reads it, and passes a new list
    layout: Annotated[
        str | None, typer.Option(help="Layout of the data, see docs/preference-data.md.  [default: by their columns]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that image paths start from.  [default: the folder of the data file]")
    ] = None,
    override: Annotated[
        list[str], typer.Option("--set", help="Override a value of the recipe, such as seed=1. Repeat it for more.")
    ] = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run from its checkpoint.")] = False,
    tracker: Annotated[
        str,
        typer.Option(help="Where figures go besides metrics.jsonl: tensorboard, wandb, trackio, mlflow, ..., or none."),
    ] = "tensorboard",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Start from random weights, to try shapes and memory.")
    ] = False,
    push_to_hub: PushToHub = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Say in the model card that the people of --data are simulated.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a scorer on people's preferences between images."""
    from sp_rerank.storage import hub
    from sp_rerank.train.recipe import read_recipe

    chosen = read_recipe(recipe).with_overrides(override)
    if push_to_hub:
        hub.check_push(push_to_hub)
    elif simulated:
        raise UsageError("--simulated says something in a model card; expected it with --push-to-hub")
    with quiet():
        from sp_rerank.train import loop
        from sp_rerank.train.card import write_card
        from sp_rerank.train.distributed import current
        from sp_rerank.train.model import load_base, random_base

        main = current().is_main_process
        learning, held_out = _read(data, validation, layout, images, chosen)
        if main:
            pairs = sum(len(group.pairs) for group in learning)
            say(f"training on {pairs} pairs of {len(learning)} groups, validating on {len(held_out)} groups")
            if pairs < FEW:
                say(f"below {FEW:,} pairs `sp-rerank taste` learns more, in seconds; docs/choosing.md")
            if not held_out:
                say("no prompts to validate on: the scorer of the last step is written to last/, and no best/")
        scorer = random_base(chosen) if random_weights else load_base(chosen)
        base_name = scorer.name  # of the weights as they are before they learn
        with _progress_bar(chosen.steps, main) as progress, stop_on_interrupt() as stop:
            try:
                outcome = loop.train(
                    chosen,
                    learning,
                    scorer=scorer,
                    out=out,
                    validation=held_out,
                    resume=resume,
                    tracker=tracker,
                    progress=progress,
                    stop=stop,
                )
            except KeyboardInterrupt:
                if main:
                    say("stopped; the last checkpoint is kept. Go on with the same command and --resume")
                raise
        if main:
            _report(outcome, as_json)
            if push_to_hub:  # an upload that fails has lost nothing
                write_card(outcome.folder, chosen, (learning, held_out), data=data, base=base_name, simulated=simulated)
                say(f"uploaded: {hub.push_folder(outcome.folder, push_to_hub, 'model')}")


def _read(
    data: list[str], validation: list[str], layout: str | None, images: Path | None, recipe: Recipe
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """The groups to learn from, and those that choose the best step."""
    from sp_rerank.train.preferences import hold_out
    from sp_rerank.train.readers import read_preferences

    def read(places: list[str]) -> list[PreferenceGroup]:
        return [group for place in places for group in read_preferences(place, layout=layout, images=images)]

    learning = read(data)
    if validation or not recipe.validation_fraction:
        return learning, read(validation)
    held_out, learning = hold_out(learning, recipe.validation_fraction, SPLIT_SEED)
    return learning, held_out


def _report(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print_json({
            "scorer": f"sp@{outcome.folder}",
            "steps": outcome.steps,
            "first_accuracy": outcome.first_accuracy,
            "best_step": outcome.best_step,
            "best_accuracy": outcome.best_accuracy,
            "skipped": outcome.skipped,
        })
        return
    if outcome.skipped:
        say(f"skipped {outcome.skipped} images that cannot be read")
    if outcome.best_accuracy is not None:
        started = "" if outcome.first_accuracy is None else f", {outcome.first_accuracy:.1%} before training"
        say(f"validation accuracy {outcome.best_accuracy:.1%} at step {outcome.best_step}{started}")
    tell(f"sp@{outcome.folder}")


@contextmanager
def _progress_bar(steps: int, shown: bool) -> Iterator[Callable[[StepMetrics], None]]:
    """One bar: how far, and whether the method does what it should."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console()
    count, row = TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[row]}")
    with Progress(
        count, BarColumn(), TimeRemainingColumn(), row,
        console=screen, transient=True, disable=not (shown and screen.is_terminal),
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=steps, row="")
        yield lambda row: bar.update(task, completed=row.step, row=_line(row))


def _line(row: StepMetrics) -> str:
    parts = [f"loss {row.loss:.3f}"]
    parts += [] if row.accuracy is None else [f"right {row.accuracy:.0%}"]
    parts += [] if row.gate is None else [f"gate {row.gate:.2f}"]
    parts += [f"effective {row.effective:.1f}/{row.pairs}", f"L_pref {row.gradient_share:.0%} of the gradient"]
    return ", ".join([f"stage {row.stage}" if row.stage else "no stages", *parts])
