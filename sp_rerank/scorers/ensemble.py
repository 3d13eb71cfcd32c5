"""Several scorers as one: by the mean of their ranks, or by a weighted sum of their scores.

One scorer alone is over-optimized: the more candidates, the more its pick suits the scorer. Scales differ, so without
weights only ranks can be averaged, and a rank takes all images of a prompt. Knows scorers by their contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sp_rerank.errors import UsageError
from sp_rerank.scorers.scoring import name_of

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sp_rerank.types import Scorer

JOINT = "+"
TIMES = "*"


class MeanRank:
    """Ranks images by the mean of the ranks that its members give them.

    `generate` and `rank` have all images of a prompt and take it; a single score of it does not exist.

    Args:
        members: At least two, with different names.

    Attributes:
        name: The full names of the members, joined by "+".
        members: The scorers that are asked.
    """

    def __init__(self, members: Sequence[Scorer]) -> None:
        self.members = _checked(members)
        self.name = JOINT.join(map(name_of, self.members))
        _adopt_embeddings(self, self.members)

    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Nothing: there is no score without the other images of the prompt.

        Raises:
            UsageError: Always, saying what to take instead.
        """
        plain = [name_of(member).partition("@")[0] for member in self.members]
        raise UsageError(
            "a mean of ranks needs all images of a prompt, and here they are scored one by one; name one scorer, or "
            f"give weights: {JOINT.join(f'1{TIMES}{name}' for name in plain)}"
        )


class WeightedSum:
    """A weighted sum of scores, each in its scorer's own scale.

    Args:
        members: At least two, with different names.
        weights: Of each, finite and not zero; below zero where a lower score is to be better.

    Attributes:
        name: The full names with their weights: "0.5*clip-mini@3f2a...+1*brightness".
        members: The scorers that are asked.
        weights: Of each.
    """

    def __init__(self, members: Sequence[Scorer], weights: Sequence[float]) -> None:
        self.members, self.weights = _checked(members), tuple(weights)
        pairs = zip(self.weights, self.members, strict=True)
        self.name = JOINT.join(f"{weight:g}{TIMES}{name_of(member)}" for weight, member in pairs)
        _adopt_embeddings(self, self.members)

    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Score n images; see `sp_rerank.types.Scorer`. NaN where a member's score is not finite."""
        import torch

        scores = [member.score(prompt, images).float() for member in self.members]
        return torch.stack([weight * own for weight, own in zip(self.weights, scores, strict=True)]).sum(0)


def _checked(members: Sequence[Scorer]) -> tuple[Scorer, ...]:
    names = [name_of(member) for member in members]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"expected two scorers or more, each once, got {', '.join(names) or 'none'}")
    return tuple(members)


def _adopt_embeddings(ensemble: object, members: Sequence[Scorer]) -> None:
    """Tell near-copies as the first member does that can."""
    embed = next((member.embed for member in members if hasattr(member, "embed")), None)  # pyright: ignore[reportAttributeAccessIssue]
    if embed is not None:
        vars(ensemble)["embed"] = embed


def is_ensemble(spec: str) -> bool:
    """Whether a spec names several scorers; a folder may have a plus in its name."""
    from pathlib import Path

    return JOINT in spec and not (spec.startswith("sp@") and Path(spec.removeprefix("sp@")).expanduser().is_dir())


def members_of(spec: str) -> tuple[list[str], list[float] | None]:
    """The names in a spec such as "hps-v2.1+image-reward" or "20*hps-v2.1+image-reward", and their weights.

    Args:
        spec: Names joined by "+", each perhaps with a weight before it; where one has a weight, the others have 1.

    Raises:
        UsageError: If a name is missing, or a weight is no number other than zero.
    """
    parts = [part.strip().rpartition(TIMES) for part in spec.split(JOINT)]
    if any(not name for _, _, name in parts):
        raise UsageError(f"the scorers {spec!r}: expected names joined by {JOINT}, such as hps-v2.1+image-reward")
    weights = [_weight(text, spec) if times else 1.0 for text, times, _ in parts]
    return [name.strip() for _, _, name in parts], weights if any(times for _, times, _ in parts) else None


def load_ensemble(spec: str, load: Callable[[str], Scorer]) -> MeanRank | WeightedSum:
    """The scorers of a spec, see `members_of`, as one; `load` makes a scorer of a name."""
    names, weights = members_of(spec)
    members = [load(name) for name in names]
    return MeanRank(members) if weights is None else WeightedSum(members, weights)


def _weight(text: str, spec: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise UsageError(f"the scorers {spec!r}: the weight is {text!r}; expected a number other than zero")
    return weight


def with_members(scorer: Scorer, others: Sequence[Scorer]) -> list[Scorer]:
    """The other scorers of a run, the members of a mean rank first: their scores are what it is made of."""
    members = list(scorer.members) if isinstance(scorer, MeanRank) else []
    names = set(map(name_of, members))
    return [*members, *(other for other in others if name_of(other) not in names)]


def asked_first(scorer: Scorer) -> Scorer:
    """The scorer that scores a batch first: of a mean rank its first member."""
    return scorer.members[0] if isinstance(scorer, MeanRank) else scorer
