"""The two tables of the paper for scorers and data of one's own: accuracy beside people's, and under HP&CC.

Li, Niu, Zhao: Stable Preference (ECCV 2024). ImageReward's test split counts micro, HPD v2's counts macro; both are
given for each data set. Knows groups and scores; knows nothing of how a scorer works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sp_rerank.report.tables import percent, table
from sp_rerank.storage.perturbation import RATIOS
from sp_rerank.train.evaluate import Evaluation, evaluation_of
from sp_rerank.train.preferences import PreferenceGroup
from sp_rerank.train.robustness import Perturbed, Robustness, robustness_of, views_of
from sp_rerank.train.scores import score_data
from sp_rerank.train.tables import accuracy_table

if TYPE_CHECKING:
    from sp_rerank.types import Scorer

CROPPED = tuple(ratio for ratio in RATIOS if ratio < 1)
"""The side ratios of the paper's table."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A scorer on a data set: what `evaluate` and `robustness` find, each image opened once for both."""

    evaluation: Evaluation
    robustness: Robustness

    @property
    def skipped(self) -> dict[str, str]:
        """Why each image that is left out could not be read, by its name."""
        return self.evaluation.skipped


def paper_row(
    scorer: Scorer,
    groups: Iterable[PreferenceGroup],
    *,
    data: str,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> PaperRow:
    """Score every image as it is and at the paper's side ratios; arguments and errors as those of `robustness`."""
    views = views_of(CROPPED)
    scored, skipped = score_data(scorer, groups, data=data, batch_size=batch_size, views=views, progress=progress)
    return PaperRow(
        evaluation_of(scored, scorer=scorer.name, data=data, skipped=skipped, seed=seed),
        robustness_of(scored, CROPPED, scorer=scorer.name, data=data, skipped=skipped, seed=seed),
    )


def markdown(rows: Sequence[PaperRow]) -> str:
    """The two tables; that of HP&CC once for each way to count."""
    text = accuracy_table([row.evaluation for row in rows])
    for kind, name in (("accuracy", "micro"), ("macro", "macro")):
        text += f"\nSensitivity, {name} accuracy, % (and its change): mirrored, the center cropped to a side ratio\n\n"
        text += table(
            ["scorer", "data", "as they are", *(f"HP&CC {ratio:g}" for ratio in CROPPED)],
            [[row.robustness.scorer, row.robustness.data, *_cells(row.robustness.rows, kind)] for row in rows],
        )
    return text


def _cells(rows: Sequence[Perturbed], kind: str) -> list[str]:
    first, *others = (getattr(row, kind) for row in rows)
    changes = [100 * (other.value - first.value) for other in others]
    return [
        percent(first),
        *(f"{100 * o.value:.1f} ({change:+.1f})" for o, change in zip(others, changes, strict=True)),
    ]
