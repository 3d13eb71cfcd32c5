"""What a scorer is worth on a data set, in one value.

Knows groups and scores; knows nothing of how a scorer works or was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sp_rerank.stats.agreement import Estimate
from sp_rerank.stats.calibration import Calibration
from sp_rerank.train.preferences import PreferenceGroup

if TYPE_CHECKING:
    from sp_rerank.types import Scorer

from sp_rerank.train.accuracy import (
    Human,
    Margins,
    TieRule,
    calibration,
    human_agreement,
    macro_accuracy,
    margins,
    micro_accuracy,
    tie_rule,
)
from sp_rerank.train.scores import ScoredGroup, score_data


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a scorer is worth on a data set.

    Attributes:
        data: name of the data set.
        scorer: name of the scorer.
        groups: Number of groups with at least one pair.
        images: scored.
        skipped: why each of the others could not be read, by its name.
        nonfinite: scores that were not finite; a pair with one counts as wrong.
        ties: pairs that people found equally good.
        micro: share of all strict pairs in the right order; a predicted tie is wrong (ImageReward).
        macro: a prompt's 1 - inversions/pairs, then the mean (HPS v2); label ties are pairs that nothing can invert.
            A predicted tie is half an inversion: HPS v2 leaves it to the order in the file.
        tie_rule: None where no pair is a tie or there is no prompt to choose the threshold on.
        margins: None where images are not ranked.
        human: None where single annotators are not known.
        calibration: Calibration of the probability that the gap gives, for one person where single ones are known.
    """

    data: str
    scorer: str
    groups: int
    images: int
    skipped: dict[str, str]
    nonfinite: int
    ties: int
    micro: Estimate
    macro: Estimate
    tie_rule: TieRule | None
    margins: Margins | None
    human: Human | None
    calibration: Calibration


def evaluate(
    scorer: Scorer,
    groups: Iterable[PreferenceGroup],
    *,
    data: str,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Compare a scorer with people.

    Args:
        scorer: The scorer to evaluate.
        groups: read as they are used; images that cannot be read are left out, with their pairs.
        data: name of the data set, for the tables.
        batch_size: Number of images scored at once, of whatever prompts.
        seed: of the bootstrap over prompts and of the prompts that choose the threshold of ties.
        progress: Called with the number of images done, scored or skipped.

    Raises:
        NothingUsableError: if no pair of images could be read.
        UsageError: if the scorer does not give a score for each image, and as `read_preferences`.
    """
    scored, skipped = score_data(scorer, groups, data=data, batch_size=batch_size, progress=progress)
    return evaluation_of(scored, scorer=scorer.name, data=data, skipped=skipped, seed=seed)


def evaluation_of(
    scored: Sequence[ScoredGroup], *, scorer: str, data: str, skipped: dict[str, str], seed: int = 0
) -> Evaluation:
    """What scores of the images as they are, view 0, are worth; arguments as the attributes of `Evaluation`."""
    return Evaluation(
        data=data,
        scorer=scorer,
        groups=len(scored),
        images=sum(group.scores.shape[1] for group in scored),
        skipped=skipped,
        nonfinite=sum(int((~np.isfinite(group.scores[0])).sum()) for group in scored),
        ties=sum(pair.label == 0.5 for group in scored for pair in group.pairs),
        micro=micro_accuracy(scored, seed=seed),
        macro=macro_accuracy(scored, seed=seed),
        tie_rule=tie_rule(scored, seed=seed),
        margins=margins(scored, seed=seed),
        human=human_agreement(scored, seed=seed),
        calibration=calibration(scored),
    )
