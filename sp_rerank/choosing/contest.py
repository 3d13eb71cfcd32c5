"""The images of one prompt that a person chooses among: out of run folders, or out of folders of images.

Each is known by the SHA-256 of its file. What is damaged, was changed since its run committed it, or was replaced by a
safety checker is left out, and said. Knows places and scores that are there; asks no scorer.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp_rerank.errors import SpRerankError, StorageError, UsageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.layout import CONFIG
from sp_rerank.storage import atomic, image_files


@dataclass(frozen=True, slots=True)
class Item:
    """An image to choose.

    Attributes:
        sha256: Of its file.
        path: Its file.
        scores: By the full names of scorers; finite ones only.
        run: Folder of the run that it is from, if it is from one.
        index: Its place in the run.
    """

    sha256: str
    path: Path
    scores: Mapping[str, float]
    run: Path | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Contest:
    """The images of one prompt, in the order in which they were found; an image that is there twice is there once.

    Attributes:
        prompt: What they should show.
        items: Two or more images.
        scorer: Full name of the scorer whose scores every image has; "" where there is none.
    """

    prompt: str
    items: tuple[Item, ...]
    scorer: str = ""

    @property
    def scores(self) -> list[float] | None:
        """The scores by `scorer`; None where there is none."""
        return [item.scores[self.scorer] for item in self.items] if self.scorer else None

    @property
    def place(self) -> dict[str, int]:
        """The place of each image by its SHA-256."""
        return {item.sha256: i for i, item in enumerate(self.items)}


@dataclass(slots=True)
class Gathered:
    """What was found in places.

    Attributes:
        contests: One a prompt, in the order of the places.
        left_out: A line for each kind of image that is not shown, with how many.
    """

    contests: list[Contest] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def gather(places: Sequence[Path], prompt: str | None = None) -> Gathered:
    """The images of places, by prompt.

    Args:
        places: Run folders, folders of images, image files, and rankings as `sp-rerank rank --json` prints them.
        prompt: What images that are of no run should show.

    Raises:
        UsageError: If a place is not there, an image is of no known prompt, or no prompt has two images.
        StorageError: If a run is damaged.
    """
    found: dict[str, list[Item]] = {}
    firsts: dict[str, list[str]] = {}
    problems: Counter[str] = Counter()
    loose: list[Path] = []
    for place in places:
        if (place / CONFIG).is_file():
            run = RunDir.read(place)
            text = _prompt_of(run)
            found.setdefault(text, []).extend(_of_run(run, problems))
            firsts.setdefault(text, []).extend(run.config.scorers)
        elif place.suffix.lower() == ".json" and place.is_file():
            text, names, items = _of_ranking(place, problems)
            found.setdefault(text, []).extend(items)
            firsts.setdefault(text, []).extend(names)
        else:
            loose.append(place)
    if loose:
        if prompt is None or not prompt.strip():
            raise UsageError(f"{loose[0]} is no run folder, and no prompt was given; expected what its images show")
        found.setdefault(prompt, []).extend(_of_files(loose, problems))
    contests = [_contest(text, items, firsts.get(text, [])) for text, items in found.items()]
    usable = [contest for contest in contests if len(contest.items) > 1]
    if not usable:
        raise UsageError(
            f"{', '.join(map(str, places)) or 'no place'}: expected two usable images of a prompt, found "
            f"{max((len(contest.items) for contest in contests), default=0)}"
        )
    lines = [f"{count} {'image' if count == 1 else 'images'} left out: {why}" for why, count in problems.items()]
    lines += [f"a prompt with one image left out: {c.prompt[:60]!r}" for c in contests if len(c.items) < 2]
    return Gathered(usable, lines)


def with_scorer(contest: Contest, spec: str) -> Contest | None:
    """The contest with the scores of a scorer that every image has already; None where they are not there.

    Args:
        contest: Any.
        spec: Full name of the scorer, or its name without the hash.
    """
    common = set.intersection(*(set(item.scores) for item in contest.items))
    matching = sorted(name for name in common if spec in (name, name.partition("@")[0]))
    return Contest(contest.prompt, contest.items, matching[0]) if len(matching) == 1 else None


def with_scores(contest: Contest, scorer: str, scores: Mapping[str, float]) -> Contest:
    """The contest with the scores of a scorer by SHA-256; images without a finite one are left out of it."""
    items = tuple(
        Item(item.sha256, item.path, {**item.scores, scorer: scores[item.sha256]}, item.run, item.index)
        for item in contest.items
        if math.isfinite(scores.get(item.sha256, math.nan))
    )
    return Contest(contest.prompt, items, scorer)


def _contest(prompt: str, items: Iterable[Item], scorers: Sequence[str]) -> Contest:
    """The first scorer that ranked any of the runs and whose scores every image has."""
    unique = tuple({item.sha256: item for item in items}.values())
    common = set.intersection(*(set(item.scores) for item in unique)) if unique else set[str]()
    return Contest(prompt, unique, next((name for name in scorers if name in common), ""))


def _prompt_of(run: RunDir) -> str:
    if run.config.prompt is None:
        raise UsageError(f"{run.path}: its run.json names no prompt; expected a run with one")
    return run.config.prompt


def _of_run(run: RunDir, problems: Counter[str]) -> Iterator[Item]:
    for index, row in sorted(run.rows.items()):
        if row.status != "ok":
            problems[{"dropped": "dropped by the search"}.get(row.status, "flagged or not finite")] += 1
            continue
        try:
            run.image_bytes(index)
        except StorageError as error:
            problems["changed since it was made" if "sha256" in str(error) else "missing or not readable"] += 1
            continue
        finite = {name: float(score) for name, score in row.scores.items() if score is not None}
        yield Item(row.sha256, run.image(index), finite, run.path, index)


def _of_files(places: Sequence[Path], problems: Counter[str]) -> Iterator[Item]:
    for path in image_files.find_images(places).files:
        if item := _item(path, {}, problems):
            yield item


def _of_ranking(file: Path, problems: Counter[str]) -> tuple[str, list[str], list[Item]]:
    """Prompt, scorers and images of what `rank` printed as JSON."""
    with atomic.storage_errors(file):
        text = file.read_bytes()
    try:
        record: Any = json.loads(text)
        if "rankings" in record:
            raise UsageError(f"{file}: rankings for {len(record['rankings'])} prompts; expected a file for each")
        listed = [(Path(row["file"]), dict(row["scores"])) for row in record["ranking"]]
        prompt, names = str(record["prompt"]), [str(name) for name in record["scorers"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{file}: expected what `sp-rerank rank --json` prints: {error!r} was not there") from error
    items = [_item(path, scores, problems) for path, scores in listed]
    return prompt, names, [item for item in items if item]


def _item(path: Path, scores: Mapping[str, Any], problems: Counter[str]) -> Item | None:
    from sp_rerank.storage.images import open_image

    try:
        open_image(path)
        with atomic.storage_errors(path):
            digest = atomic.sha256_of(path)
    except SpRerankError:
        problems["missing or not readable"] += 1
        return None
    numbers = {name: float(score) for name, score in scores.items() if isinstance(score, int | float)}
    return Item(digest, path, {name: score for name, score in numbers.items() if math.isfinite(score)})
