"""One person at the page: the questions that wait, the answers that were given, and how it goes.

Every answer is in the store before the next question is chosen. Knows contests, questions and the store; knows nothing
of HTTP.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sp_rerank.choosing import consistency
from sp_rerank.choosing.belief import FIRST
from sp_rerank.choosing.contest import Contest, Item
from sp_rerank.choosing.questions import Question, Questions
from sp_rerank.choosing.store import Answer, AnswerStore
from sp_rerank.errors import StorageError, UsageError
from sp_rerank.label.pictures import Pictures

WAITING = 3  # questions: the one that is shown, and two that the browser loads meanwhile
LABELS = {"left": 1.0, "right": 0.0, "equal": 0.5, "bad": 0.5, "skip": None}
"""What a person can say, as the label of the image on the left."""

LONGEST_MS = 60_000  # of an answer that counts for the time spent; longer ones were breaks
SURE = 0.9


@dataclass(frozen=True, slots=True)
class Rules:
    """How a session shows its figures, and when it says that there is enough.

    Attributes:
        confidence: Probability that the first is the best, above which the page says so.
        blind_stats: Whether agreement with the scorer is kept from the person until the end.
    """

    confidence: float = SURE
    blind_stats: bool = False


class Session:
    """The session of one person; safe to use from several threads.

    Args:
        annotator: The person's name.
        store: Where answers go.
        questions: Chooses what is asked.
        rules: See `Rules`.
        seed: Of draws that are not about questions.
    """

    def __init__(
        self, annotator: str, store: AnswerStore, questions: Questions, rules: Rules | None = None, seed: int = 0
    ) -> None:
        self.annotator = annotator
        self.pictures = Pictures()
        self._store, self._questions, self._rules = store, questions, rules or Rules()
        self._rng = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self._queue: list[Question] = []
        self._shown: dict[str, float] = {}
        self._prompts = [contest.prompt for contest in questions.contests]
        self._lost: set[str] = set()
        self._revision = -1
        self._read()

    @property
    def contests(self) -> list[Contest]:
        """What there is to choose among."""
        return self._questions.contests

    def _read(self) -> None:
        """Take up what the store holds, if anybody else changed it."""
        revision = self._store.revision()
        if revision != self._revision:
            self._revision = revision
            answers = self._store.answers(self.annotator, self._prompts)
            self._questions.begin(answers, self._store.marks(self.annotator, self._prompts))

    def state(self) -> dict[str, Any]:
        """What the page shows, for JSON: questions by random names of their images, and how it goes."""
        with self._lock:
            self._read()
            self._fill()
            return {
                "questions": [self._described(question) for question in self._queue],
                **self._progress(),
            }

    def answer(self, question_id: str, said: str, milliseconds: int) -> bool:
        """Keep an answer.

        Args:
            question_id: Of a question that waits.
            said: "left", "right", "equal", "bad" or "skip".
            milliseconds: From when the question could be seen.

        Returns:
            False if no such question waits: it was answered before, or the session is another one.

        Raises:
            UsageError: If nothing of the kind can be said.
            StorageError: If it cannot be kept; the question waits on.
        """
        if said not in LABELS:
            raise UsageError(f"expected an answer out of {', '.join(LABELS)}, got {said!r}")
        with self._lock:
            question = next((waiting for waiting in self._queue if waiting.id == question_id), None)
            if question is None:
                return False
            answer = self._answered(question, said, milliseconds)
            self._store.add(answer)
            self._queue.remove(question)
            self._questions.hear(answer)
            return True

    def _answered(self, question: Question, said: str, milliseconds: int) -> Answer:
        contest = self.contests[question.contest]
        of_left = LABELS[said]
        turned = question.first_side == "right" and of_left is not None
        return Answer(
            id=question.id,
            prompt=contest.prompt,
            first=contest.items[question.first].sha256,
            second=contest.items[question.second].sha256,
            label=1 - of_left if turned and of_left is not None else of_left,
            both_bad=said == "bad",
            first_side=question.first_side,
            repeat_of=question.repeat_of,
            shown_at=time.time() - milliseconds / 1000,
            answered_ms=milliseconds,
            annotator=self.annotator,
            chooser=question.chooser,
        )

    def undo(self) -> bool:
        """Take the last answer back and ask its question again, first of all; False where there is none."""
        with self._lock:
            self._read()
            if not self._questions.answers:
                return False
            last = self._questions.answers[-1]
            self._store.undo(last.id)
            self._questions.begin(self._questions.answers[:-1], self._store.marks(self.annotator, self._prompts))
            again = self._questions.ask_again(last)
            self._queue = [again, *(waiting for waiting in self._queue if waiting.pair != again.pair)][:WAITING]
            return True

    def _fill(self) -> None:
        """Choose questions until enough wait, with their images read; one whose images are gone is not asked."""
        while len(self._queue) < WAITING:
            question = self._questions.next(self._queue)
            if question.pair in {waiting.pair for waiting in self._queue}:
                return  # there are not so many
            try:
                for item in self._ends(question):
                    self.pictures.prepare(item)
            except StorageError:
                self._forget(question)
                continue
            self._queue.append(question)

    def _forget(self, question: Question) -> None:
        """Go on without the images of a question that can no longer be read."""
        gone = {item.sha256 for item in self._ends(question) if not self._readable(item)}
        contests = [
            replace(contest, items=tuple(item for item in contest.items if item.sha256 not in gone))
            for contest in self.contests
        ]
        left = [contest for contest in contests if len(contest.items) > 1]
        if not left:
            raise StorageError("the images are gone, or were changed, since the session began; begin it anew")
        self._lost |= gone
        self._queue.clear()
        self._questions = self._questions.among(left)
        self._revision = -1
        self._read()

    def _readable(self, item: Item) -> bool:
        try:
            self.pictures.prepare(item)
        except StorageError:
            return False
        return True

    def _ends(self, question: Question) -> tuple[Item, Item]:
        """The images on the left and on the right."""
        items = self.contests[question.contest].items
        first, second = items[question.first], items[question.second]
        return (first, second) if question.first_side == "left" else (second, first)

    def _described(self, question: Question) -> dict[str, str]:
        left, right = (self.pictures.name(item) for item in self._ends(question))
        prompt = self.contests[question.contest].prompt
        return {"id": question.id, "prompt": prompt, "left": left, "right": right}

    def _progress(self) -> dict[str, Any]:
        answers = self._questions.answers
        given = [answer for answer in answers if answer.label is not None]
        spent = sum(min(answer.answered_ms, LONGEST_MS) for answer in answers)
        found = self.consistency()
        shown = not self._rules.blind_stats and found.scorer.of > 0
        progress: dict[str, Any] = {
            "answered": len(given),
            "undoable": len(answers) > 0,
            "minutes": round(spent / 60_000),
            "lost": len(self._lost),
            "scorer": str(found.scorer) if shown else None,
            "sure": None,
            "settled": False,
        }
        if self._questions.goal == "best" and given:
            current = self._queue[0].contest if self._queue else 0
            belief = self._questions.belief(current)
            probability = belief.best_probability(self._rng)
            progress["sure"] = round(probability, 2)
            progress["settled"] = belief.settled()
            progress["enough"] = probability > self._rules.confidence
        return progress

    def best(self, contest: int | None = None) -> list[Item]:
        """The first images of a contest as the person is believed to order them now."""
        with self._lock:
            current = contest if contest is not None else self._queue[0].contest if self._queue else 0
            items = self.contests[current].items
            return [items[i] for i in self._questions.belief(current).order()[:FIRST]]

    def best_names(self) -> list[str]:
        """`best` of the contest that is shown, by the names of the pictures."""
        with self._lock:
            return [self.pictures.name(item) for item in self.best()]

    def png(self, name: str) -> bytes | None:
        """The picture of a name; None where there is none.

        Raises:
            StorageError: If its file is gone.
        """
        with self._lock:
            return self.pictures.png(name)

    def best_probability(self, contest: int) -> float:
        """The probability that the first of `best` is the best of its contest."""
        with self._lock:
            return self._questions.belief(contest).best_probability(self._rng)

    def consistency(self) -> consistency.Consistency:
        """How far the answers agree with themselves and with the scorer."""
        with self._lock:
            return consistency.consistency(self._questions.answers, self._questions.score)
