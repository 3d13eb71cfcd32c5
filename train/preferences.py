"""What people preferred: images of a prompt, pairs of them, and which prompts are held out.

Images stay where they are (a file, a member of a zip archive, a cell of a parquet file) until they are opened. Knows
nothing of how data sets are laid out, of models, batches or scores.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, count, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from PIL import Image

from sp_rerank.errors import NothingUsableError, StorageError, UnreadableImageError, UsageError
from sp_rerank.storage import images

log = logging.getLogger(__name__)

MOST_SKIPPED = 0.01
"""Share of a training set's images that may be unreadable before training stops."""

MOST_BYTES = 256_000_000
"""Of an image inside an archive; a small archive can hold gigabytes."""

Prompted = TypeVar("Prompted", bound="_HasPrompt")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where an image is; sources are equal if they name the same image.

    Attributes:
        path: of the image file, or of the archive or table that holds it.
        member: its name in there; "" for an image file.
        data: the image file itself, where it came out of a table.
    """

    path: Path
    member: str = ""
    data: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """For messages and tables; tells sources apart."""
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    def open(self) -> Image.Image:
        """The image in RGB, read with the care of `sp_rerank.storage.images.open_image`.

        Raises:
            UnreadableImageError: naming it and why.
        """
        if not self.member:
            return images.open_image(self.path)
        return images.read_image(self._bytes, self.name)

    def previews(self) -> list[ImageSource]:
        """What the image looked like while it was made, for NAME.png NAME.preview-1.png and so on beside it.

        None where the image is inside an archive or a table.
        """
        if self.member:
            return []
        named = (self.path.with_name(f"{self.path.stem}.preview-{k}{self.path.suffix}") for k in count(1))
        return [ImageSource(path) for path in takewhile(Path.is_file, named)]

    def _bytes(self) -> io.BytesIO:
        return io.BytesIO(_read_member(self.path, self.member) if self.data is None else self.data)


class _HasPrompt(Protocol):
    @property
    def prompt(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of a group, and which one was preferred.

    Attributes:
        first: Index of the first image in the group.
        second: Index of the second image.
        label: 1 if the first is better, 0 if the second is, .5 if they tie.
        extra: Further columns of one's own data, such as annotator and answered_ms, as they were read.
    """

    first: int
    second: int
    label: float
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """Images of one prompt, ordered by people.

    Attributes:
        prompt: as given.
        images: opened when they are needed.
        pairs: what is known of their order; of a ranked group every two images, the lower index first.
        ranks: one an image, lower is better, equal = tied; None where people compared pairs only.
        annotations: the ranks that single annotators gave, where they are known.

    Raises:
        ValueError: if the prompt is no text, or a pair, rank or label is not such.
    """

    prompt: str
    images: tuple[ImageSource, ...]
    pairs: tuple[Pair, ...]
    ranks: tuple[float, ...] | None = None
    annotations: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self):
        n = len(self.images)
        if not isinstance(self.prompt, str):
            raise ValueError(f"the prompt should be text, not {self.prompt!r}")
        for ranks in (*self.annotations, *([] if self.ranks is None else [self.ranks])):
            if len(ranks) != n or not all(map(math.isfinite, ranks)):
                raise ValueError(f"a finite rank for each of {n} images was expected, not {list(ranks)}")
        for pair in self.pairs:
            if not (0 <= pair.first < n and 0 <= pair.second < n and pair.first != pair.second):
                raise ValueError(f"two of {n} images were expected, not numbers {pair.first} and {pair.second}")
            if pair.label not in (0, 0.5, 1):
                raise ValueError(f"a label should be 1 (the first is better), 0 or 0.5 (a tie), not {pair.label!r}")

    @classmethod
    def ranked(
        cls,
        prompt: str,
        images: Sequence[ImageSource],
        ranks: Sequence[float],
        annotations: Sequence[Sequence[float]] = (),
    ) -> PreferenceGroup:
        """The group of a ranking: its pairs follow from the ranks."""
        if len(ranks) != len(images):
            raise ValueError(f"a rank for each of {len(images)} images was expected, not {len(ranks)} ranks")
        pairs = tuple(
            Pair(i, j, 0.5 if ranks[i] == ranks[j] else float(ranks[i] < ranks[j]))
            for i, j in combinations(range(len(images)), 2)
        )
        opinions = tuple(tuple(map(float, ranks)) for ranks in annotations)
        return cls(prompt, tuple(images), pairs, tuple(map(float, ranks)), opinions)


class ImageReader:
    """Opens images; skips, counts and names those that cannot be read.

    Attributes:
        skipped: by the name of each skipped image, why.

    Args:
        total: of images in a training set: if more than MOST_SKIPPED of them are unreadable, training stops. None never
            stops.
    """

    def __init__(self, total: int | None = None):
        self.total = total
        self.skipped: dict[str, str] = {}

    def read(self, source: ImageSource) -> Image.Image | None:
        """The image in RGB, or None if it cannot be read.

        Raises:
            NothingUsableError: if this is one too many.
        """
        try:
            return source.open()
        except UnreadableImageError as error:
            if source.name not in self.skipped:
                self.skipped[source.name] = str(error)
                log.warning("skipped: %s", error)
        if self.total is not None and len(self.skipped) > MOST_SKIPPED * self.total:
            raise NothingUsableError(
                f"{len(self.skipped)} of {self.total} images cannot be read, {MOST_SKIPPED:.0%} at most was expected; "
                f"the last is {source.name}; fetch them again, or take them out of the data"
            )
        return None


def split_groups(groups: Iterable[Prompted], shares: Sequence[float], seed: int) -> tuple[list[Prompted], ...]:
    """Deal groups out by a hash of their prompt: a prompt is on one side only, whatever else is in the data.

    Args:
        groups: Whatever has a prompt, of one data set or of several.
        shares: Shares of the parts, each above 0, together 1. The sizes come near them; no part is empty where there
            are as many prompts as parts.
        seed: Another seed deals otherwise.

    Returns:
        The parts, in the groups' order. Prompts that differ in case and spaces only are one prompt.

    Raises:
        UsageError: if the shares are not such.
    """
    if not shares or not min(shares) > 0 or not math.isclose(sum(shares), 1):
        raise UsageError(f"expected shares above 0 that add up to 1, got {', '.join(map(str, shares)) or 'none'}")
    groups = list(groups)
    places = {_prompt_key(group.prompt): 0.0 for group in groups}
    for key in places:
        digest = hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "replace")).digest()
        places[key] = int.from_bytes(digest[:8]) / 2**64
    part_of = _deal(places, shares)
    parts: tuple[list[Prompted], ...] = tuple([] for _ in shares)
    for group in groups:
        parts[part_of[_prompt_key(group.prompt)]].append(group)
    return parts


def _prompt_key(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def _deal(places: Mapping[str, float], shares: Sequence[float]) -> dict[str, int]:
    """The part of each key by its place in [0, 1); an empty part takes the nearest key of the fullest one."""
    ends = [sum(shares[:i]) for i in range(len(shares) + 1)]
    part_of = {key: sum(place >= end for end in ends[1:-1]) for key, place in places.items()}
    for part in range(len(shares)):
        sizes = Counter(part_of.values())
        fullest, size = max(sorted(sizes.items()), key=lambda item: item[1], default=(0, 0))
        if sizes[part] == 0 and size > 1:
            middle = (ends[part] + ends[part + 1]) / 2
            taken = [key for key, current in part_of.items() if current == fullest]
            part_of[min(taken, key=lambda key: (abs(places[key] - middle), key))] = part
    return part_of


def hold_out(
    groups: Sequence[PreferenceGroup], fraction: float, seed: int
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """Set prompts aside to validate on, at least one of several: only prompts with a better image say anything there.

    Args:
        groups: All groups.
        fraction: Fraction of the prompts to hold out, in (0, 1).
        seed: Another seed holds out others.

    Returns:
        The groups held out and the groups to learn from. Nothing is held out where that would leave no prompt with a
        better image to learn from.
    """
    strict = {_prompt_key(group.prompt) for group in groups if any(pair.label != 0.5 for pair in group.pairs)}
    if len(strict) < 2:
        return [], list(groups)
    deciding = [group for group in groups if _prompt_key(group.prompt) in strict]
    held_out, _ = split_groups(deciding, (fraction, 1 - fraction), seed)
    away = {_prompt_key(group.prompt) for group in held_out}
    return held_out, [group for group in groups if _prompt_key(group.prompt) not in away]


@lru_cache(maxsize=64)
def archive_members(archive: Path) -> dict[str, str]:
    """The files in an archive, by their last name."""
    try:
        return {PurePosixPath(name).name: name for name in _archive(archive, os.getpid()).namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise StorageError(f"{archive} cannot be read: {error}; fetch it again") from error


@lru_cache(maxsize=16)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """An archive that stays open, a process its own: forked ones would move each other's place in the file."""
    return zipfile.ZipFile(path)


def _read_member(path: Path, member: str) -> bytes:
    archive = _archive(path, os.getpid())
    if archive.getinfo(member).file_size > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES / 1e6:g} MB")
    return archive.read(member)
