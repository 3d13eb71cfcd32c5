"""Counts the tokens of a prompt, and tells which part of it a model does not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Truncation:
    """A prompt that a reader cuts: `tokens` of it, start and end included, `limit` that are read, and the lost text."""

    reader: str
    tokens: int
    limit: int
    tail: str

    def __str__(self) -> str:
        return f"{self.reader} reads {self.limit} of the prompt's {self.tokens} tokens; lost: {self.tail!r}"


def truncations(pipe: Any, scorer: Any, prompt: str) -> list[Truncation]:
    """What the text encoders of a diffusers pipeline and a scorer lose of a prompt; empty where all of it is read.

    Args:
        pipe: tokenizers of one limit are named once.
        scorer: without a `lost_tail` it cannot tell, and is left out; with one it has `count_tokens` and `max_tokens`.
        prompt: as the person gave it.
    """
    tokenizers = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    found = {cut.limit: cut for t in tokenizers if t is not None and (cut := _of_tokenizer(t, prompt))}
    return [*found.values(), *_of_scorer(scorer, prompt)]


def _of_tokenizer(tokenizer: Any, prompt: str) -> Truncation | None:
    # `verbose` off: the tokenizer's own warning does not say what is lost
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    limit = tokenizer.model_max_length
    if len(ids) <= limit:
        return None
    return Truncation("the image model", len(ids), limit, tokenizer.decode(ids[limit - 1 : -1]).strip())


def _of_scorer(scorer: Any, prompt: str) -> list[Truncation]:
    tail = scorer.lost_tail(prompt) if hasattr(scorer, "lost_tail") else ""
    name = f"the scorer {scorer.name.split('@')[0]}"
    return [Truncation(name, scorer.count_tokens(prompt), scorer.max_tokens, tail)] if tail else []
