"""Contests and answers for tests: images without a model, a person who knows what they want."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sp_rerank.choosing.contest import Contest, Item
from sp_rerank.choosing.questions import Question
from sp_rerank.choosing.store import Answer

PROMPT = "a lemon on the beach"


def contest_of(n: int, scores: Sequence[float] | None = None, prompt: str = PROMPT) -> Contest:
    """n images named "0", "1" and so on, which are no files."""
    known = [
        {} if scores is None else {"test@1": float(score)} for score in (scores if scores is not None else range(n))
    ]
    items = tuple(Item(str(i), Path(f"{i}.png"), known[i]) for i in range(n))
    return Contest(prompt, items, "" if scores is None else "test@1")


def answer_of(first: object, second: object, label: float | None = 1.0, **changes: Any) -> Answer:
    """An answer; `changes` are fields of `Answer`."""
    values: dict[str, Any] = {
        "id": f"{first}-{second}-{label}", "prompt": PROMPT, "first": str(first), "second": str(second), "label": label,
        "both_bad": False, "first_side": "left", "repeat_of": None, "shown_at": 0.0, "answered_ms": 900,
        "annotator": "me", "chooser": "random",
    }  # fmt: skip
    return Answer(**{**values, **changes})


def answered(question: Question, label: float | None, **changes: Any) -> Answer:
    """The answer to a question."""
    return answer_of(
        question.first, question.second, label, id=question.id, first_side=question.first_side,
        repeat_of=question.repeat_of, chooser=question.chooser, **changes,
    )  # fmt: skip
