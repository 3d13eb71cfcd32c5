"""The one place that asks a pair scorer: both ways round, as many answers as pairs, each a probability.

Knows the contract of `sp_rerank.types.PairScorer`; which pairs are asked and what follows is `sp_rerank.stats.pairing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from sp_rerank.errors import UsageError, is_device_lost, is_out_of_memory
from sp_rerank.scorers.scoring import MEND, name_of, named_error
from sp_rerank.stats.pairing import Pair, Utilities, from_pairs
from sp_rerank.storage.images import to_rgb
from sp_rerank.types import PairScorer

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.types import Scorer

PAIRS_AT_ONCE = 8


def by_kind(scorers: Sequence[Scorer | PairScorer]) -> tuple[list[Scorer], list[PairScorer]]:
    """Those that score each image by itself, and those that only compare pairs."""
    single: list[Scorer] = []
    pairs: list[PairScorer] = []
    for scorer in scorers:
        if isinstance(scorer, PairScorer) and not hasattr(scorer, "score"):
            pairs.append(scorer)
        else:
            single.append(cast("Scorer", scorer))
    return single, pairs


def utilities(scorer: PairScorer, prompt: str, count: int, picture: Callable[[int], Image.Image]) -> Utilities:
    """Utilities of n images of a prompt by a few comparisons, `2 log2(n)` an image and side.

    Each pair is asked both ways round, and the mean counts: what prefers the image that it sees first is evened out.

    Args:
        scorer: Any pair scorer.
        prompt: What all images should show.
        count: n.
        picture: From a place 0..n-1 to the image, which is read anew each time and held for a few pairs only.

    Raises:
        UsageError: naming the scorer, if it raises an error or gives anything but a probability for each pair.
        Exception: as it is, if memory does not suffice or the accelerator failed; see `sp_rerank.errors`.
    """

    def ask(pairs: Sequence[Pair]) -> list[float]:
        answers: list[float] = []
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            images = {
                place: to_rgb(picture(place)) for place in dict.fromkeys(place for pair in part for place in pair)
            }
            first, second = ([images[pair[side]] for pair in part] for side in (0, 1))
            ahead, back = _probabilities(scorer, prompt, first, second), _probabilities(scorer, prompt, second, first)
            answers += [(there + 1 - here) / 2 for there, here in zip(ahead, back, strict=True)]
        return answers

    return from_pairs(count, ask)


def _probabilities(
    scorer: PairScorer, prompt: str, first: Sequence[Image.Image], second: Sequence[Image.Image]
) -> list[float]:
    name = name_of(scorer)
    try:
        given: Any = scorer.compare(prompt, [image.copy() for image in first], [image.copy() for image in second])
    except Exception as error:
        if is_out_of_memory(error) or is_device_lost(error):
            error.add_note(f"raised by the scorer {name}")
            raise
        raise named_error(error, name) from error
    shape = tuple(getattr(given, "shape", ()))
    if shape != (len(first),) or not hasattr(given, "tolist"):
        got = f"shape {shape}" if shape else f"a {type(given).__name__}"
    else:
        numbers = [float(number) for number in given.tolist()]
        outside = [number for number in numbers if not 0 <= number <= 1]
        if not outside:
            return numbers
        got = f"{outside[0]}"
    raise UsageError(
        f"scorer {name}: expected the probability that the first image is better for each of {len(first)} pairs, a "
        f"tensor of shape ({len(first)},) in 0..1, got {got}; {MEND}"
    )
