"""A scorer of one person's own taste, out of some dozens to hundreds of answers, in seconds.

A linear head (`head`) on a base scorer's score and embeddings. Every figure is of answers that the head had no part in.
Knows preferences and what a base sees; how a taste scores is in `sp_rerank.scorers.taste`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from sp_rerank.choosing.consistency import Share
from sp_rerank.errors import UsageError
from sp_rerank.stats.calibration import Calibration, calibrate
from sp_rerank.storage import atomic
from sp_rerank.train.head import FEWEST, Answers, Array, Head, predict_onward
from sp_rerank.train.preferences import ImageReader, ImageSource, Pair, PreferenceGroup

if TYPE_CHECKING:
    from sp_rerank.scorers.taste import TasteScorer
    from sp_rerank.types import Scorer

LAST = 60  # answers of the figure that is reported first
CHANCE = 0.05
"""Of answers at random, the share that would pass for a taste."""


@dataclass(frozen=True, slots=True)
class TasteReport:
    """How well a taste agrees with its person; ties and repeated questions are not counted.

    Attributes:
        base: Full name of the base.
        answers: Number of answers that the taste was fitted on.
        prompts: Number of prompts.
        variance: How far the head may leave the base, see VARIANCES.
        base_last: How often the base agreed, of the last answers.
        taste_last: How often the taste agreed with the same ones, each predicted from the answers before it alone.
        base_all: How often the base agreed, of all answers.
        taste_prompts: How often the taste agreed with answers on prompts that it was not fitted on; None of one prompt.
        temperature: Of the calibration, in units of the taste's score.
    """

    base: str
    answers: int
    prompts: int
    variance: float
    base_last: Share
    taste_last: Share
    base_all: Share
    taste_prompts: Share | None
    temperature: float


def report(answers: Answers, head: Head, base: str) -> tuple[TasteReport, Calibration]:
    """How well a taste agrees with its person, and what a gap of its scores means."""
    counted = answers.fresh & (answers.labels != 0.5)
    onward = predict_onward(answers)
    last = np.flatnonzero(counted & np.isfinite(onward))[-LAST:]
    whole = np.flatnonzero(counted)
    several = len(set(answers.prompts.tolist())) > 1
    fitted = calibrate(head.left_out, answers.labels)
    found = TasteReport(
        base=base,
        answers=len(answers),
        prompts=len(set(answers.prompts.tolist())),
        variance=head.variance,
        base_last=_agreement(answers.score, answers.labels, last),
        taste_last=_agreement(onward, answers.labels, last),
        base_all=_agreement(answers.score, answers.labels, whole),
        taste_prompts=_agreement(head.left_out, answers.labels, whole) if several else None,
        temperature=fitted.temperature,
    )
    return found, fitted


def _agreement(logits: Array, labels: Array, which: NDArray[np.int64]) -> Share:
    return Share(int(np.sum((logits[which] > 0) == (labels[which] == 1))), len(which))


def check_told_from_chance(answers: Answers, head: Head) -> None:
    """Refuse answers that say nothing: too few, or no more regular than answers at random.

    Raises:
        UsageError: With the agreement that was reached.
    """
    counted = np.flatnonzero(answers.fresh & (answers.labels != 0.5))
    right = _agreement(head.left_out, answers.labels, counted)
    if binomtest(right.count, right.of, alternative="greater").pvalue > CHANCE:
        raise UsageError(
            f"no taste can be told from these {len(answers)} answers: left out, {right} of them are predicted right, "
            "and answers at random would be in .5; no scorer is written; answer more questions, or take another base"
        )


def read_answers(
    groups: Sequence[PreferenceGroup],
    base: Scorer,
    *,
    annotator: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Answers, Counter[str]]:
    """Answers as numbers, each image seen by the base once.

    Args:
        groups: Preferences; in the order of their column shown_at where every one has it, else in their own.
        base: A scorer with embeddings of images.
        annotator: Whose answers; None is everyone's.
        progress: Called with the number of images that were seen.

    Returns:
        The answers, and how many are whose.

    Raises:
        UsageError: If there are fewer than FEWEST answers that one image is better, or the base has no embeddings.
    """
    asked = [
        _Asked(group.prompt, (group.images[pair.first], group.images[pair.second]), pair)
        for group in groups
        for pair in group.pairs
        if annotator is None or str(pair.extra.get("annotator", "")) == annotator
    ]
    people = Counter(str(item.pair.extra.get("annotator", "")) for item in asked)
    if all(item.shown_at is not None for item in asked):
        asked.sort(key=lambda item: item.shown_at or 0.0)
    decided = sum(item.pair.label != 0.5 for item in asked)
    if decided < FEWEST:
        whose = f" by {annotator}" if annotator else ""
        raise UsageError(f"expected {FEWEST} answers or more{whose} in which one image is better, got {decided}")
    features = _features(base, [(item.prompt, source) for item in asked for source in item.ends], progress)
    usable = [item for item in asked if all((item.prompt, source) in features for source in item.ends)]
    first, second = (np.array([features[item.prompt, item.ends[end]] for item in usable]) for end in (0, 1))
    gaps = first - second
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(item.prompt for item in usable))}
    answers = Answers(
        score=gaps[:, 0],
        gaps=gaps[:, 1:],
        labels=np.array([item.pair.label for item in usable], float),
        prompts=np.array([numbers[item.prompt] for item in usable]),
        fresh=np.array([not _number(item.pair.extra.get("repeat")) for item in usable]),
    )
    return answers, people


@dataclass(frozen=True, slots=True)
class _Asked:
    """An answer and where its images are."""

    prompt: str
    ends: tuple[ImageSource, ImageSource]
    pair: Pair

    @property
    def shown_at(self) -> float | None:
        return _number(self.pair.extra.get("shown_at"))


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _features(
    base: Scorer, wanted: Sequence[tuple[str, ImageSource]], progress: Callable[[int], None] | None
) -> dict[tuple[str, ImageSource], Array]:
    """Score and embeddings of each image of each prompt; images that cannot be read are left out, and said."""
    from sp_rerank.scorers.taste import look

    distinct = list(dict.fromkeys(wanted))
    reader, found = ImageReader(len(distinct)), dict[tuple[str, ImageSource], Array]()
    for done, (prompt, source) in enumerate(distinct, start=1):
        image = reader.read(source)
        if image is not None:
            seen = look(base, prompt, [image])
            row = np.concatenate([seen.score.numpy(), seen.image[0].numpy(), seen.match[0].numpy()])
            found[prompt, source] = row.astype(float)
        if progress:
            progress(done)
    return found


def as_scorer(head: Head, base: Scorer, *, base_spec: str, out: Path, source: str) -> TasteScorer:
    """The scorer of a head.

    Args:
        head: Fitted on what this base sees.
        base: Loaded by `base_spec`.
        base_spec: What `load_scorer` takes.
        out: The folder that it will be written to: its name is the taste's.
        source: Where the answers come from, for its configuration.
    """
    import torch

    from sp_rerank.scorers.taste import TasteScorer

    config: Any = getattr(base, "config", {})
    reads = len(head.weights) == 2 * config["embed_dim"]
    image_dim = config["embed_dim"] if reads else len(head.weights)
    taste = TasteScorer(
        name=f"taste-{out.name}",
        base=_seen_from(out, base_spec),
        base_name=base.name,
        image_dim=image_dim,
        match_dim=len(head.weights) - image_dim,
        license=config["license"],
        source=source,
    )
    with torch.no_grad():
        taste.score_weight.fill_(head.score)
        taste.image_weight.copy_(torch.from_numpy(head.weights[:image_dim]))
        taste.match_weight.copy_(torch.from_numpy(head.weights[image_dim:]))
    taste.use(base)
    return taste.eval()


def _seen_from(out: Path, spec: str) -> str:
    """A base in a folder, by its way from the taste's folder."""
    name, _, place = spec.partition("@")
    if not place or not Path(place).expanduser().is_dir():
        return spec
    return f"{name}@{Path(os.path.relpath(Path(place).expanduser().absolute(), out.absolute())).as_posix()}"


def check_place(out: Path) -> None:
    """Refuse a folder that holds anything but an older taste, before an hour of answers is read.

    Raises:
        UsageError: If it does.
    """
    from sp_rerank.scorers.taste import TasteScorer

    if out.is_dir() and any(out.iterdir()):
        config = out / TasteScorer.config_name
        if not config.is_file() or TasteScorer.__name__ not in config.read_text("utf-8", "replace"):
            raise UsageError(f"{out} holds something else than a taste; choose another folder")


def write(taste: TasteScorer, fitted: Calibration, out: Path, *, data: str) -> None:
    """Put the scorer and its calibration into a folder, in place of an older taste.

    Raises:
        StorageError: If it cannot be written.
    """
    from sp_rerank.scorers.calibration import keep

    def fill(folder: Path) -> None:
        taste.save_pretrained(folder)
        taste.folder = folder
        if math.isfinite(fitted.temperature):
            keep(taste, fitted, data=data)

    with atomic.storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace_folder(out, fill)
    taste.folder = out
