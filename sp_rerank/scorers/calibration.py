"""How sure a gap between two scores makes one: the temperature by `sp-rerank evaluate`, kept beside the weights.

P(a preferred to b) = sigmoid((S(a) - S(b)) / temperature). A calibration belongs to the very weights that it was fitted
for. Knows the file and where scorers lie; how the temperature is fitted is in `sp_rerank.stats.calibration`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.errors import UsageError
from sp_rerank.scorers.registry import known_folders
from sp_rerank.scorers.scoring import score_with_sigma
from sp_rerank.storage import atomic
from sp_rerank.types import SigmaScorer

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.stats.calibration import Calibration
    from sp_rerank.types import PairScorer, Scorer

log = logging.getLogger(__name__)

FILE = "calibration.json"


@dataclass(frozen=True, slots=True)
class ScorerCalibration:
    """What a gap between two scores of one prompt means.

    Attributes:
        scorer: full name with its hash; the calibration is of no other weights.
        temperature: in units of the score; 0 if the higher score was always preferred.
        data: name of the preferences that it was fitted on.
        pairs: of them, an annotator's choice each where single annotators are known.
        error: expected calibration error on the same pairs, 0..1.
        simulated: whether the people were simulated.

    Raises:
        ValueError: if a field has another type or range than that.
    """

    scorer: str
    temperature: float
    data: str
    pairs: int
    error: float
    simulated: bool

    def __post_init__(self):
        types = {"scorer": str, "data": str, "pairs": int, "simulated": bool}
        wrong = [name for name, kind in types.items() if type(getattr(self, name)) is not kind]
        for name in ("temperature", "error"):
            value = getattr(self, name)  # compared as it is: an integer may be larger than any float
            if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
                wrong.append(name)
        if "pairs" not in wrong and not 0 <= self.pairs <= sys.maxsize:
            wrong.append("pairs")
        if wrong:
            found = ", ".join(f"{name}={getattr(self, name)!r:.60}" for name in wrong)
            raise ValueError(f"expected text, finite numbers from 0 on and a truth value, got {found}")

    @property
    def margin(self) -> float:
        """The gap below which two scores are not told apart; see `sp_rerank.stats.calibration.margin`."""
        from sp_rerank.stats.calibration import margin  # which needs scipy

        return margin(self.temperature)

    def preferred(self, gap: float) -> float:
        """P(the first is preferred), given its score minus that of the second."""
        from sp_rerank.stats.calibration import preferred

        return preferred(gap, self.temperature)


def calibration_of(scorer: Scorer | PairScorer | str) -> ScorerCalibration | None:
    """The calibration that lies beside a scorer's weights; None where there is none, or it is of other weights.

    Args:
        scorer: a loaded one; or the full name of one out of the table, such as a run folder holds it: its weights are
            then looked for where the table keeps them, and not loaded. What is damaged there is warned of, and is none:
            what a page shows of a finished run does not hang on it.

    Raises:
        UsageError: if the file beside a loaded scorer is damaged.
    """
    name = scorer if isinstance(scorer, str) else scorer.name
    for folder in _folders_of(scorer):
        try:
            found = _read(folder / FILE)
        except UsageError as error:
            if not isinstance(scorer, str):
                raise
            log.warning("%s; it is not used", error)
            continue
        if found is not None and found.scorer == name:
            return found
        if found is not None and not isinstance(scorer, str):
            log.warning(
                "%s is of %s, not of %s, and is not used; fit it anew with sp-rerank evaluate --keep-calibration",
                folder / FILE, ascii(found.scorer), name,
            )  # fmt: skip
    return None


def margin_of(scorer: Scorer | PairScorer | str, sigmas: Sequence[float] | None = None) -> float:
    """The gap below which two scores are not told apart; 0, by which only equal scores tie, where nothing is known.

    Args:
        scorer: as for `calibration_of`; what people prefer goes before what the scorer says of itself.
        sigmas: standard deviations of its scores, where it tells them.
    """
    found = calibration_of(scorer)
    if found:
        return found.margin
    if not sigmas:
        return 0.0
    from sp_rerank.stats.calibration import margin_of_sigmas

    return margin_of_sigmas(sigmas)


def margin_by_sigma(scorer: Scorer, prompt: str, kept: Sequence[Image.Image]) -> float:
    """The margin of a scorer that says how sure it is, of these images; 0 of another one.

    It asks again, so that the margin hangs on the kept images alone, and not on what was scored before an interruption.
    """
    if not kept or not isinstance(scorer, SigmaScorer):
        return 0.0
    return margin_of(scorer, score_with_sigma(scorer, prompt, kept)[1])


def keep(scorer: Scorer, fitted: Calibration, *, data: str, simulated: bool = False) -> Path:
    """Write what was fitted beside the weights of its scorer, in place of an older calibration.

    Args:
        scorer: whose gaps they were, loaded from a folder.
        fitted: to the preferences.
        data: name of these.
        simulated: whether the people are simulated.

    Returns:
        The file.

    Raises:
        UsageError: if the scorer has no folder of weights, or its gaps say nothing.
        StorageError: if the file cannot be written.
    """
    folder = getattr(scorer, "folder", None)
    if folder is None:
        raise UsageError(
            f"scorer {scorer.name}: expected one that was loaded from a folder of weights, for its calibration to lie "
            "beside them"
        )
    if not math.isfinite(fitted.temperature):
        raise UsageError(
            f"scorer {scorer.name}: on {data} a higher score says nothing about what is preferred (temperature "
            f"{fitted.temperature}); expected a scorer that is right more often than not; no calibration is written"
        )
    pairs = sum(part.n for part in fitted.bins)
    found = ScorerCalibration(scorer.name, fitted.temperature, data, pairs, fitted.error, simulated)
    path = folder / FILE
    atomic.write(path, (json.dumps(asdict(found), indent=2, allow_nan=False) + "\n").encode())
    return path


def _folders_of(scorer: Scorer | PairScorer | str) -> list[Path]:
    if isinstance(scorer, str):
        return known_folders(scorer.partition("@")[0])
    folder = getattr(scorer, "folder", None)
    return [folder] if folder else []


def _read(path: Path) -> ScorerCalibration | None:
    """What a file holds; None where there is no such file."""
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
        return ScorerCalibration(**{field.name: record[field.name] for field in fields(ScorerCalibration)})
    except FileNotFoundError:
        return None
    except KeyError as error:
        why = f"expected a value for {error}, found none"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
    raise UsageError(f"{path} is no calibration: {why}; remove it, or fit it anew with sp-rerank evaluate")
