"""Which two images to show next, and on which side: to find the best of a prompt, or to learn a person's taste.

Finding the best (`best`): the image that is believed to be the best, beside the one that is expected to beat it by
most: E[max(u(j) - u(best), 0)], the expected improvement of Jones et al. 1998 over draws from the posterior. Top-two
Thompson sampling (Russo 2016, arXiv 1602.08448) was tried and finds less with few answers; docs/reports/choosing.md
has the figures.

Learning (`learn`): random questions, dealt evenly over prompts and gaps of the scorer, until FEW answers. Then every
other question is the one of many random ones whose answer a linear head is least sure of, p (1 - p) x' C x; the random
half stays an honest sample of the person's choices.

One question in REPEAT_EVERY is an earlier one with the sides swapped, which tells how far the person agrees with
themselves. Knows contests and answers; knows no store, page or network.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from sp_rerank.choosing.belief import Belief, Comparison, Tally
from sp_rerank.choosing.contest import Contest
from sp_rerank.choosing.store import Answer, Mark
from sp_rerank.stats.bradley_terry import Posterior, posterior

Array = NDArray[np.float64]
Goal = Literal["best", "learn"]

REPEAT_EVERY = 8
REPEAT_AFTER = 10  # answers between a question and its repeat
FEW = 50  # answers before questions are chosen for what they teach
DRAWS = 400
TRIED = 500  # random questions of which the most telling one is asked
STRATA = 3  # of the gaps between two scores
DIMENSIONS = 64  # of the head that chooses questions
FAVORITE = 0.3  # answers that a mark counts for against each unmarked image
BAD = 0.3  # answers against a middling image that "both bad" counts for


@dataclass(frozen=True, slots=True)
class Question:
    """Two images of a prompt, to be shown side by side.

    Attributes:
        id: Of the answer that it will get.
        contest: Place of the prompt in the list of contests.
        first: Place of an image in the contest.
        second: Place of the other one.
        first_side: Where the first one is shown, "left" or "right".
        chooser: What chose it: "random", "active" or "repeat".
        repeat_of: Id of the answer that it repeats.
    """

    id: str
    contest: int
    first: int
    second: int
    first_side: str
    chooser: str
    repeat_of: str | None = None

    @property
    def pair(self) -> tuple[int, int, int]:
        """What tells it from other questions, whatever the sides."""
        return self.contest, min(self.first, self.second), max(self.first, self.second)


class Questions:
    """Chooses the questions of one person.

    Args:
        contests: What there is to choose among.
        goal: "best" or "learn".
        rng: Draws sides, repeats and questions.
        features: For "learn", (n, d) of the images of each contest, such as a scorer's embeddings.
    """

    def __init__(
        self,
        contests: Sequence[Contest],
        goal: Goal,
        rng: np.random.Generator,
        features: Sequence[Array] | None = None,
    ) -> None:
        self.contests = list(contests)
        self.goal: Goal = goal
        self._rng = rng
        self._features = None if features is None else _reduced(features)
        self._places = [contest.place for contest in contests]
        self._of_prompt = {contest.prompt: i for i, contest in enumerate(contests)}
        self.begin([])

    def begin(self, answers: Sequence[Answer], marks: Sequence[Mark] = ()) -> None:
        """Take what the person said so far, in order, in place of what was known before."""
        self.answers: list[Answer] = []
        self._tallies = [Tally() for _ in self.contests]
        self._asked = Counter[int]()
        self._beliefs: dict[int, Belief] = {}
        for answer in answers:
            self.hear(answer)
        for contest, place, tally in zip(self.contests, self._places, self._tallies, strict=True):
            own = [mark for mark in marks if mark.prompt == contest.prompt]
            tally.add(comparisons_of_marks(own, place))

    def hear(self, answer: Answer) -> None:
        """Take one more answer; one about other images is not looked at."""
        if not self._known(answer):
            return
        contest = self._of_prompt[answer.prompt]
        self.answers.append(answer)
        self._asked[contest] += 1
        self._tallies[contest].add(comparisons_of(answer, self._places[contest]))
        self._beliefs.pop(contest, None)
        self.__dict__.pop("_head", None)

    def _known(self, answer: Answer) -> bool:
        contest = self._of_prompt.get(answer.prompt)
        return contest is not None and {answer.first, answer.second} <= self._places[contest].keys()

    def among(self, contests: Sequence[Contest]) -> Questions:
        """The same for fewer images, without answers; questions to learn from are drawn at random then."""
        return Questions(contests, self.goal, self._rng)

    def score(self, prompt: str, sha256: str) -> float | None:
        """The scorer's score of an image; None where there is no scorer."""
        contest = self._of_prompt[prompt]
        scores = self.contests[contest].scores
        return None if scores is None else scores[self._places[contest][sha256]]

    def belief(self, contest: int) -> Belief:
        """What is believed of the images of a contest now."""
        if contest not in self._beliefs:
            whole = self.contests[contest]
            known = Belief(len(whole.items), self._tallies[contest].comparisons, scores=whole.scores)
            self._beliefs[contest] = known
        return self._beliefs[contest]

    def next(self, waiting: Sequence[Question] = ()) -> Question:
        """The next question, other than those that are waiting to be answered."""
        taken = {question.pair for question in waiting}
        repeated = self._repeat(waiting, taken)
        if repeated:
            return repeated
        contest = self._next_contest(waiting)
        if self.goal == "learn":
            first, second, chooser = self._teaching(contest, taken)
        else:
            first, second = self._improving(contest, taken)
            chooser = "active"
        return self._ask(contest, first, second, chooser)

    def ask_again(self, answer: Answer) -> Question:
        """The question of an answer that was undone, with the same sides."""
        contest = self._of_prompt[answer.prompt]
        place = self._places[contest]
        return Question(
            uuid.uuid4().hex, contest, place[answer.first], place[answer.second], answer.first_side, answer.chooser,
            answer.repeat_of,
        )  # fmt: skip

    def _ask(self, contest: int, first: int, second: int, chooser: str) -> Question:
        side = "left" if self._rng.random() < 0.5 else "right"
        return Question(uuid.uuid4().hex, contest, int(first), int(second), side, chooser)

    def _repeat(self, waiting: Sequence[Question], taken: set[tuple[int, int, int]]) -> Question | None:
        """An earlier question with its sides swapped, once in a while."""
        if self._rng.random() * REPEAT_EVERY >= 1:
            return None
        done = {answer.repeat_of for answer in self.answers} | {question.repeat_of for question in waiting}
        long_ago = self.answers[: max(0, len(self.answers) + len(waiting) - REPEAT_AFTER)]
        usable = [a for a in long_ago if a.label is not None and a.repeat_of is None and a.id not in done]
        if not usable:
            return None
        answer = usable[int(self._rng.integers(len(usable)))]
        again = self.ask_again(answer)
        if again.pair in taken:
            return None
        side = "right" if answer.first_side == "left" else "left"
        return Question(again.id, again.contest, again.first, again.second, side, "repeat", answer.id)

    def _next_contest(self, waiting: Sequence[Question]) -> int:
        """The prompt with the fewest answers, the first of several."""
        counts = self._asked + Counter(question.contest for question in waiting)
        return min(range(len(self.contests)), key=lambda i: (counts[i], i))

    def _improving(self, contest: int, taken: set[tuple[int, int, int]]) -> tuple[int, int]:
        """The image that is believed to be the best, and the one that may well be better."""
        known = self.belief(contest)
        drawn = known.draw(self._rng, DRAWS)
        order = known.order()
        for best in order:
            gain = np.maximum(drawn - drawn[:, [best]], 0).mean(axis=0)
            gain[best] = -1
            for other in np.argsort(-gain, kind="stable")[:-1]:
                if (contest, min(best, int(other)), max(best, int(other))) not in taken:
                    return best, int(other)
        return order[0], order[1]  # two images, and both are waiting

    def _teaching(self, contest: int, taken: set[tuple[int, int, int]]) -> tuple[int, int, str]:
        pairs = [pair for pair in self._random_pairs(contest, TRIED) if (contest, *sorted(pair)) not in taken]
        pairs = pairs or self._random_pairs(contest, 1)
        active = sum(answer.chooser == "active" for answer in self.answers)
        random = sum(answer.chooser == "random" for answer in self.answers)
        if self._features is None or len(self.answers) < FEW or active >= random - FEW:
            return *self._stratified(contest, pairs), "random"
        features, head = self._features[contest], self._head
        gaps = features[[i for i, _ in pairs]] - features[[j for _, j in pairs]]
        p = expit(gaps @ head.mean)
        telling = p * (1 - p) * np.einsum("kd,de,ke->k", gaps, head.covariance, gaps)
        return *pairs[int(telling.argmax())], "active"

    def _random_pairs(self, contest: int, count: int) -> list[tuple[int, int]]:
        n = len(self.contests[contest].items)
        first = self._rng.integers(n, size=count)
        second = (first + self._rng.integers(1, n, size=count)) % n
        return list(zip(first.tolist(), second.tolist(), strict=True))

    def _stratified(self, contest: int, pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """A random pair whose scores are a small, a middling or a large gap apart, in turn."""
        scores = self.contests[contest].scores
        if scores is None:
            return pairs[0]
        by_gap = sorted(pairs, key=lambda pair: abs(scores[pair[0]] - scores[pair[1]]))
        stratum = len(self.answers) % STRATA
        inside = by_gap[len(by_gap) * stratum // STRATA : len(by_gap) * (stratum + 1) // STRATA] or by_gap
        return inside[int(self._rng.integers(len(inside)))]

    @cached_property
    def _head(self) -> Posterior:
        """A linear head on the features, for choosing questions only; `sp-rerank taste` fits the one that is kept."""
        assert self._features is not None
        gaps, labels, weights = [np.zeros((0, self._features[0].shape[1]))], list[float](), list[float]()
        for features, tally in zip(self._features, self._tallies, strict=True):
            between = [c for c in tally.comparisons if c.second is not None]
            if between:
                gaps.append(features[[c.first for c in between]] - features[[int(c.second or 0) for c in between]])
                labels += [c.label for c in between]
                weights += [c.weight for c in between]
        return posterior(np.concatenate(gaps), labels, weights=weights)


def comparisons_of(answer: Answer, place: dict[str, int]) -> list[Comparison]:
    """What an answer says of the images of a contest, by their places; nothing where the question was skipped."""
    if answer.label is None:
        return []
    first, second = place[answer.first], place[answer.second]
    found = [Comparison(first, second, answer.label)]
    if answer.both_bad:
        found += [Comparison(first, None, 0.0, BAD), Comparison(second, None, 0.0, BAD)]
    return found


def comparisons_of_marks(marks: Sequence[Mark], place: dict[str, int]) -> list[Comparison]:
    """What marks say, weakly: a favorite beats each image of its prompt without a mark, a rejected one loses to it."""
    kinds = {place[mark.sha256]: mark.kind for mark in marks if mark.sha256 in place}
    others = [i for i in place.values() if i not in kinds]
    found = [Comparison(i, other, float(kind == "favorite"), FAVORITE) for i, kind in kinds.items() for other in others]
    rejected = [i for i, kind in kinds.items() if kind == "reject"]
    found += [
        Comparison(i, other, 1.0, FAVORITE) for i, kind in kinds.items() if kind == "favorite" for other in rejected
    ]
    return found


def _reduced(features: Sequence[Array]) -> list[Array]:
    """Features of all images without what the images of a prompt share, in their main directions, of spread 1."""
    centered = [each - each.mean(axis=0) for each in features]
    together = np.concatenate(centered)
    _, sizes, directions = np.linalg.svd(together, full_matrices=False)
    kept = directions[:DIMENSIONS]
    scale = float(np.sqrt((sizes[:DIMENSIONS] ** 2).sum() / len(together))) or 1.0
    return [each @ kept.T / scale for each in centered]
