"""The model card of a trained scorer: what it started from, what it learned from, how well it does, what it is for.

Text of others (names, prompts) stays text: nothing in it is markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sp_rerank.report.tables import markdown_text, percent, table
from sp_rerank.scorers.calibration import calibration_of
from sp_rerank.scorers.registry import load_scorer
from sp_rerank.stats.agreement import Estimate
from sp_rerank.storage import atomic
from sp_rerank.train.accuracy import micro_accuracy
from sp_rerank.train.checkpoints import data_sha256
from sp_rerank.train.preferences import ImageReader, PreferenceGroup
from sp_rerank.train.recipe import Recipe
from sp_rerank.train.scores import score_groups

FILE = "README.md"

EXAMPLES = 3
"""Prompts that a card shows."""

LONGEST = 120
"""Characters of a prompt that it shows."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says.

    Attributes:
        name: Of the scorer.
        base: Full name of the scorer that it started from.
        license: Of its weights, which is that of the base.
        recipe: Name and SHA-256 of the recipe.
        data: What it learned from, as it was named.
        data_sha256: Of prompts, names of images and labels.
        pairs: Number of pairs that it learned from.
        prompts: Some of the prompts that were held out.
        accuracy: On strict pairs of held-out prompts, with its interval over prompts; None where none were held out.
        simulated: Whether the people are simulated, those of the base included.
    """

    name: str
    base: str
    license: str
    recipe: tuple[str, str]
    data: Sequence[str]
    data_sha256: str
    pairs: int
    prompts: Sequence[str]
    accuracy: Estimate | None
    simulated: bool


HEAD = """---
license: other
library_name: sp-rerank
tags: [sp-rerank, reward-model, human-preference, text-to-image]
---
"""

USE = """## What it is for

Ranking images of one prompt, made by text-to-image models, by what people prefer:

```
sp-rerank rank FOLDER_OF_IMAGES --prompt "a lemon on the beach" --scorer sp@FOLDER_OF_THIS_MODEL
```

Scores of different prompts do not compare. It does not judge truth or safety, it knows only the taste of those who were
asked, and an image that was chosen for its score is worth less to people than the score says.
"""

SIMULATED = """**The preferences are those of simulated people.** How it agrees with real ones is not known."""

PEOPLE = """The preferences are those of the data set, which whoever trained it has vouched for."""


def model_card(facts: CardFacts) -> str:
    """The text of README.md."""
    rows = [
        ["started from", markdown_text(facts.base)],
        ["recipe", f"{markdown_text(facts.recipe[0])}, SHA-256 `{facts.recipe[1]}`"],
        ["learned from", f"{facts.pairs:,} pairs of {', '.join(map(markdown_text, facts.data))}"],
        ["SHA-256 of the data", f"`{facts.data_sha256}`"],
        ["accuracy on held-out prompts", _accuracy(facts.accuracy)],
        ["license", f"that of what it started from: {markdown_text(facts.license)}"],
    ]
    parts = [
        HEAD,
        f"# {markdown_text(facts.name)}\n",
        f"A scorer of human preference between images of a prompt, trained with sp-rerank.\n\n"
        f"{SIMULATED if facts.simulated else PEOPLE}\n",
        table(["", ""], rows),
        *_examples(facts.prompts),
        USE,
    ]
    return "\n".join(parts)


def _accuracy(accuracy: Estimate | None) -> str:
    if accuracy is None or not accuracy.n:
        return "not measured: no prompts were held out"
    return f"{percent(accuracy)} % of {accuracy.n:,} pairs [95 % interval over prompts]; chance is 50 %"


def _examples(prompts: Sequence[str]) -> list[str]:
    if not prompts:
        return []
    shown = [text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in prompts[:EXAMPLES]]
    return ["Held-out prompts are such as\n", "".join(f"- {markdown_text(text)}\n" for text in shown)]


def write_card(
    folder: Path,
    recipe: Recipe,
    groups: tuple[Sequence[PreferenceGroup], Sequence[PreferenceGroup]],
    *,
    data: Sequence[str],
    base: str,
    simulated: bool,
) -> CardFacts:
    """Write the card beside a trained scorer, whose accuracy is measured for it.

    Args:
        folder: Of the scorer.
        recipe: How it was trained.
        groups: Those that it learned from, and those that were held out.
        data: What it learned from, as it was named.
        base: Full name of the scorer that it started from.
        simulated: Whether the people of `data` are simulated.

    Raises:
        StorageError: If it cannot be written.
    """
    learned, held_out = groups
    scorer = load_scorer(f"sp@{folder}")
    scored = list(score_groups(scorer, held_out, reader=ImageReader()))
    known = calibration_of(base)
    facts = CardFacts(
        name=recipe.name,
        base=base,
        license=str(getattr(scorer, "config", {}).get("license", "not known")),
        recipe=(recipe.name, recipe.sha256),
        data=data,
        data_sha256=data_sha256(learned),
        pairs=sum(len(group.pairs) for group in learned),
        prompts=[group.prompt for group in held_out],
        accuracy=micro_accuracy(scored) if scored else None,
        simulated=simulated or (known is not None and known.simulated),
    )
    atomic.write(folder / FILE, model_card(facts).encode())
    return facts
