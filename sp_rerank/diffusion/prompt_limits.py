"""Counts the tokens of a prompt, and finds which part of it a model does not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sp_rerank.diffusion.twin import TOKENIZING

if TYPE_CHECKING:
    from sp_rerank.types import Scorer, TextToImagePipeline


SHOWN = 80
"""Number of characters of a lost tail that are shown: from its beginning and its end."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """A prompt that a model cuts.

    Attributes:
        reader: What reads the prompt.
        tokens: Number of its tokens, start and end included.
        limit: Number of tokens that are read.
        tail: The text that is lost.
    """

    reader: str
    tokens: int
    limit: int
    tail: str

    def __str__(self) -> str:
        tail = self.tail if len(self.tail) <= SHOWN else f"{self.tail[: SHOWN // 2]} ... {self.tail[-SHOWN // 2 :]}"
        return self._line(tail)

    @property
    def record(self) -> str:
        """As `str`, with the whole of the text that is lost."""
        return self._line(self.tail)

    def _line(self, tail: str) -> str:
        return f"{self.reader} reads {self.limit} of the prompt's {self.tokens} tokens; lost: {tail!r}"


def truncations(pipe: TextToImagePipeline, scorer: Scorer, prompt: str) -> list[Truncation]:
    """What the text encoders of a diffusers pipeline and a scorer lose of a prompt; empty where all of it is read.

    Args:
        pipe: Its tokenizers; those with the same limit are named once.
        scorer: Left out if it has no `lost_tail`; with one it has `count_tokens` and `max_tokens`.
        prompt: The prompt as it was given.
    """
    tokenizers = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    found = {cut.limit: cut for t in tokenizers if t is not None and (cut := _of_tokenizer(t, prompt))}
    return [*found.values(), *_of_scorer(scorer, prompt)]


def _of_tokenizer(tokenizer: Any, prompt: str) -> Truncation | None:
    # `verbose` off: the tokenizer's own warning does not name what is lost
    with TOKENIZING:
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        limit = tokenizer.model_max_length
        if len(ids) <= limit:
            return None
        return Truncation("the image model", len(ids), limit, tokenizer.decode(ids[limit - 1 : -1]).strip())


def _of_scorer(scorer: Any, prompt: str) -> list[Truncation]:
    tail = scorer.lost_tail(prompt) if hasattr(scorer, "lost_tail") else ""
    if not tail:
        return []
    name = f"the scorer {scorer.name.split('@')[0]}"
    return [Truncation(name, scorer.count_tokens(prompt), scorer.max_tokens, tail)]
