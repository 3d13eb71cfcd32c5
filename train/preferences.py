"""What people preferred: the published data sets and one's own files, read one prompt at a time.

A layout is told by its columns, not by a file's name. Images stay where they are (a file, a member of a zip archive, a
cell of a parquet file) until somebody opens them. Knows nothing of models, batches or scores.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import os
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, combinations, count, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from PIL import Image

from sp_rerank.errors import NothingUsableError, StorageError, UnreadableImageError, UsageError
from sp_rerank.storage import images
from sp_rerank.storage.atomic import storage_errors

log = logging.getLogger(__name__)

MOST_SKIPPED = 0.01
"""Share of a training set's images that may be unreadable before training stops."""

MOST_BYTES = 256_000_000
"""Of an image inside an archive; a small archive can hold gigabytes."""

Entry = Mapping[str, Any]
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
        first: its index in the group.
        second: likewise.
        label: 1 if the first is better, 0 if the second is, .5 if they tie.
    """

    first: int
    second: int
    label: float


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
        opinions = tuple(tuple(map(float, one)) for one in annotations)
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


def read_preferences(
    place: str | Path, images: str | Path | None = None, layout: str | None = None
) -> Iterator[PreferenceGroup]:
    """Groups of a data set, one at a time, in its order; docs/preference-data.md has the layouts.

    Groups of fewer than two images are left out, counted in a log warning.

    Args:
        place: a data file, or a folder that holds one (of Pick-a-Pic, the parquet files of one split).
        images: the folder that image paths start from; by default that of the data file, or its train/ or test/.
        layout: a name out of LAYOUTS; by default told by the columns.

    Raises:
        UsageError: at once if the data are of no known layout; at a group that is not as expected or whose image is
            not there; at the end if no pair had a better image, or the labels were all the same.
        StorageError: if a file cannot be read.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"expected a layout out of {', '.join(LAYOUTS)}, got {layout!r}")
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; the one that image paths start from was expected")
    files = _data_files(Path(place))
    columns, entries = _open_table(files[0])
    known = LAYOUTS[layout or _tell_layout(files[0], columns)]
    _check_columns(files[0], columns, known)
    tables = chain([(files[0], entries)], ((file, _open_table(file)[1]) for file in files[1:]))
    groups = (group for file, rows in tables for group in _groups(file, rows, known, folder))
    return _checked(groups, str(place), known)


def shuffled(groups: Iterable[PreferenceGroup], seed: int) -> list[PreferenceGroup]:
    """The groups in an order that the seed decides."""
    dealt = list(groups)
    random.Random(seed).shuffle(dealt)
    return dealt


def split_groups(groups: Iterable[Prompted], shares: Sequence[float], seed: int) -> tuple[list[Prompted], ...]:
    """Deal groups out by a hash of their prompt: a prompt is on one side only, whatever else is in the data.

    Args:
        groups: whatever has a prompt, of one data set or of several.
        shares: of the parts, each above 0, together 1; the sizes come near them.
        seed: another one deals otherwise.

    Returns:
        The parts, in the groups' order. Prompts that differ in case and spaces only are one prompt.

    Raises:
        UsageError: if the shares are not such.
    """
    if not shares or not min(shares) > 0 or not math.isclose(sum(shares), 1):
        raise UsageError(f"expected shares above 0 that add up to 1, got {', '.join(map(str, shares)) or 'none'}")
    ends = [sum(shares[:i]) for i in range(1, len(shares))]
    parts: tuple[list[Prompted], ...] = tuple([] for _ in shares)
    for group in groups:
        prompt = " ".join(group.prompt.casefold().split())
        digest = hashlib.sha256(f"{seed}\n{prompt}".encode("utf-8", "replace")).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        parts[sum(place >= end for end in ends)].append(group)
    return parts


# The layouts: an entry in, a group out, None for an entry without a label


@dataclass(frozen=True, slots=True)
class Layout:
    """How a data set is laid out.

    Attributes:
        columns: that it has.
        group: makes a group of an entry, given what finds its images.
        others: whether further columns are expected too, and ignored.
        by: the column whose values make entries one group, which then comes as a list a column.
        one_sided: whether all labels are the same by the nature of the layout.
    """

    columns: tuple[str, ...]
    group: Callable[[Entry, _Finder], PreferenceGroup | None]
    others: bool = True
    by: str | None = None
    one_sided: bool = False


def _image_reward(entry: Entry, find: _Finder) -> PreferenceGroup:
    return PreferenceGroup.ranked(entry["prompt"], find.all(entry["generations"]), entry["ranking"])


def _image_reward_db(entry: Entry, find: _Finder) -> PreferenceGroup:
    return PreferenceGroup.ranked(entry["prompt"][0], find.all(entry["image_path"]), entry["rank"])


def _hpd_train(entry: Entry, find: _Finder) -> PreferenceGroup:
    first, second = find.all(entry["file_path"])
    return _pair(entry["prompt"], first, second, *entry["human_preference"])


def _hpd_test(entry: Entry, find: _Finder) -> PreferenceGroup:
    # That an annotator's ranks are in the order of the images, as the group's are, is our inference.
    opinions = [one["rank"] for one in entry.get("raw_annotations") or ()]
    return PreferenceGroup.ranked(entry["prompt"], find.all(entry["image_path"]), entry["rank"], opinions)


def _pick_a_pic(entry: Entry, find: _Finder) -> PreferenceGroup | None:
    if entry.get("has_label") is False:
        return None
    first, second = (find.in_table(column, entry[column]) for column in ("jpg_0", "jpg_1"))
    return _pair(entry["caption"], first, second, entry["label_0"], entry["label_1"])


def _pair(prompt: str, first: ImageSource, second: ImageSource, label: float, opposite: float) -> PreferenceGroup:
    if label + opposite != 1:
        raise ValueError(f"labels 1 and 0, 0 and 1 or 0.5 and 0.5 were expected, not {label!r} and {opposite!r}")
    return PreferenceGroup(prompt, (first, second), (Pair(0, 1, label),))


def _own_pairs(entry: Entry, find: _Finder) -> PreferenceGroup:
    return _joined(entry["prompt"][0], entry["first"], entry["second"], map(float, entry["label"]), find)


def _winners(entry: Entry, find: _Finder) -> PreferenceGroup:
    return _joined(entry["prompt"][0], entry["better"], entry["worse"], [1.0] * len(entry["better"]), find)


def _joined(
    prompt: str, firsts: Sequence[str], seconds: Sequence[str], labels: Iterable[float], find: _Finder
) -> PreferenceGroup:
    """One group of several pairs: an image that is in more than one of them is there once."""
    index = {name: i for i, name in enumerate(dict.fromkeys([*firsts, *seconds]))}
    pairs = [Pair(index[a], index[b], label) for a, b, label in zip(firsts, seconds, labels, strict=True)]
    return PreferenceGroup(prompt, find.all(index), tuple(pairs))


LAYOUTS: dict[str, Layout] = {
    "image-reward": Layout(("prompt", "generations", "ranking"), _image_reward),
    "image-reward-db": Layout(("prompt_id", "prompt", "image_path", "rank"), _image_reward_db, by="prompt_id"),
    "hpd-train": Layout(("prompt", "file_path", "human_preference"), _hpd_train),
    "hpd-test": Layout(("prompt", "image_path", "rank"), _hpd_test),
    "pick-a-pic": Layout(("caption", "jpg_0", "jpg_1", "label_0", "label_1"), _pick_a_pic),
    "pairs": Layout(("prompt", "first", "second", "label"), _own_pairs, others=False, by="prompt"),
    "winners": Layout(("prompt", "better", "worse"), _winners, others=False, by="prompt", one_sided=True),
}
"""By name; the first that fits is taken. Columns of the first five: Xu et al. 2023 (arXiv 2304.05977, THUDM/ImageReward
and ImageRewardDB), Wu et al. 2023 (arXiv 2306.09341; tgxs002/HPSv2), Kirstain et al. 2023 (arXiv 2305.01569;
yuvalkirstain/pickapic_v2). The last two are for one's own data."""


# Files and what is in them

_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def _data_files(place: Path) -> list[Path]:
    """The data file, or those of a folder: one, or the tables that hold their images."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UsageError(f"{place} is not there; a file of preferences or a folder with one was expected")
    with storage_errors(place):
        files = sorted(path for path in place.iterdir() if path.suffix in _SUFFIXES and not path.name.startswith("."))
    if not files:
        raise UsageError(f"{place} holds no data file; one ending in {', '.join(_SUFFIXES)} was expected")
    if len(files) > 1 and not all(path.suffix == ".parquet" and "jpg_0" in _open_table(path)[0] for path in files):
        raise UsageError(
            f"{place} holds several data files: {_list(path.name for path in files)}; name the one to read"
        )
    return files


def _tell_layout(file: Path, columns: Sequence[str]) -> str:
    for name, known in LAYOUTS.items():
        if set(columns).issuperset(known.columns):
            return name
    expected = "; ".join(f"{name}: {', '.join(known.columns)}" for name, known in LAYOUTS.items())
    raise UsageError(f"{file} has the columns {_list(columns)}; expected those of one layout ({expected})")


def _check_columns(file: Path, columns: Iterable[str], layout: Layout) -> None:
    columns, expected = list(columns), ", ".join(layout.columns)
    if missing := [name for name in layout.columns if name not in columns]:
        raise UsageError(f"{file} has no column {_list(missing)}; expected {expected}, got {_list(columns)}")
    if not layout.others and (unknown := [name for name in columns if name not in layout.columns]):
        raise UsageError(f"{file} has an unknown column, {_list(unknown)}; expected {expected} and no others")


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))[:20]) or "none"


def _open_table(file: Path) -> tuple[list[str], Iterator[Entry]]:
    """The columns of a data file and its entries; a large table is read as it is used."""
    if file.suffix == ".parquet":
        table = _parquet(file)
        return table.schema_arrow.names, (row for batch in table.iter_batches(64) for row in batch.to_pylist())
    if file.suffix not in _SUFFIXES:
        raise UsageError(f"{file}: expected a file ending in {', '.join(_SUFFIXES)}")
    with storage_errors(file):
        text = file.read_bytes()
    try:
        entries = _parse(file.suffix, text.decode("utf-8-sig"))
    except (ValueError, RecursionError, csv.Error) as error:
        raise UsageError(f"{file} is no {file.suffix[1:]} file: {error}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{file}: expected entries with a prompt, images and a label or ranks, and found none such")
    return list(entries[0]), iter(entries)


def _parse(suffix: str, text: str) -> Any:
    if suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    if suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return json.loads(text)


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(f"{file}: reading parquet needs pyarrow: pip install sp-rerank[train]") from error
    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise UsageError(f"{file} is no parquet file: {error}") from error


def _groups(file: Path, entries: Iterable[Entry], layout: Layout, folder: Path | None) -> Iterator[PreferenceGroup]:
    find = _Finder(file, folder)
    checked = _checked_entries(file, entries, layout)
    for number, entry in enumerate(_gathered(checked, layout.by) if layout.by else checked, start=1):
        find.row = number
        try:
            group = layout.group(entry, find)
        except UsageError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{file}: group {number} is not as expected: {error}; correct it, or take it out"
            ) from error
        if group is not None:
            yield group


def _checked_entries(file: Path, entries: Iterable[Entry], layout: Layout) -> Iterator[Entry]:
    for entry in entries:
        _check_columns(file, entry, layout)
        yield entry


def _gathered(entries: Iterable[Entry], by: str) -> Iterator[dict[str, list[Any]]]:
    """Entries with the same value in a column as one entry of lists, in the order of the first of each."""
    together: dict[Any, list[Entry]] = {}
    for entry in entries:
        together.setdefault(entry[by], []).append(entry)
    for several in together.values():
        yield {column: [entry[column] for entry in several] for column in several[0]}


def _checked(groups: Iterable[PreferenceGroup], place: str, layout: Layout) -> Iterator[PreferenceGroup]:
    """The groups that compare something; then an error if all of them together say nothing."""
    labels: Counter[float] = Counter()
    too_small, ranked = 0, False
    for group in groups:
        if len(group.images) < 2:
            too_small += 1
            continue
        labels.update(pair.label for pair in group.pairs)
        ranked = ranked or group.ranks is not None
        yield group
    if too_small:
        log.warning("%s: %d groups of fewer than two images left out: they compare nothing", place, too_small)
    if not labels[0] and not labels[1]:
        found = f"{labels[0.5]} ties" if labels[0.5] else "no pair"
        raise UsageError(f"{place} holds {found} and no pair with a better image; nothing can be learnt or measured")
    if len(+labels) == 1 and not ranked and not layout.one_sided:
        raise UsageError(
            f"{place}: the label of every pair is {next(iter(+labels)):g}; if the same column always holds the better "
            "image, name the columns better and worse and leave the label out"
        )


class _Finder:
    """Where the images of a data file are."""

    def __init__(self, file: Path, folder: Path | None):
        self.file = file
        self.folders = [folder] if folder else [file.parent, file.parent / file.stem]
        self.row = 0  # of the table, from 1 on

    def all(self, names: Iterable[str]) -> tuple[ImageSource, ...]:
        return tuple(map(self._find, names))

    def _find(self, name: str) -> ImageSource:
        """The file of this name, or the member of an archive that its folder was packed into."""
        for folder in self.folders:
            path = folder / name
            if path.is_file():
                return ImageSource(path)
            archive = path.parent.with_name(path.parent.name + ".zip")
            if archive.is_file() and (member := _members(archive).get(path.name)):
                return ImageSource(archive, member)
        raise UsageError(
            f"{self.file}: the image {name} is not in {' or '.join(map(str, self.folders))}; "
            "fetch the images, or name the folder that their paths start from"
        )

    def in_table(self, column: str, data: bytes) -> ImageSource:
        if not isinstance(data, bytes):
            raise ValueError(f"an image file was expected in {column}, not {type(data).__name__}")
        return ImageSource(self.file, f"row {self.row} {column}", data)


@lru_cache(maxsize=64)
def _members(archive: Path) -> dict[str, str]:
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
