"""The layouts of preference data: an entry in, a group out, None for an entry without a label.

Knows the columns of the published data sets and of one's own. Knows nothing of how a file is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_rerank.errors import UsageError
from sp_rerank.train.preferences import ImageSource, Pair, PreferenceGroup, archive_members

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a data set is laid out.

    Attributes:
        columns: Columns that it has; others are ignored, and carried with the pairs of one's own layouts.
        group: Makes a group of an entry, given what finds its images.
        by: Column whose values make entries one group, which then comes as a list for each column.
        label: Column that is empty where no answer was given; such entries are left out.
        one_sided: Whether all labels are the same by the nature of the layout.
    """

    columns: tuple[str, ...]
    group: Callable[[Entry, ImageFinder], PreferenceGroup | None]
    by: str | None = None
    label: str | None = None
    one_sided: bool = False


def _image_reward(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    return PreferenceGroup.ranked(entry["prompt"], find.all(entry["generations"]), entry["ranking"])


def _image_reward_db(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    return PreferenceGroup.ranked(entry["prompt"][0], find.all(entry["image_path"]), entry["rank"])


def _hpd_train(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    first, second = find.all(entry["file_path"])
    return _pair(entry["prompt"], first, second, *entry["human_preference"])


def _hpd_test(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    # That an annotator's ranks are in the order of the images, as the group's are, is our inference.
    opinions = [opinion["rank"] for opinion in entry.get("raw_annotations") or ()]
    return PreferenceGroup.ranked(entry["prompt"], find.all(entry["image_path"]), entry["rank"], opinions)


def _pick_a_pic(entry: Entry, find: ImageFinder) -> PreferenceGroup | None:
    if entry.get("has_label") is False:
        return None
    first, second = (find.all([entry[column]], column)[0] for column in ("jpg_0", "jpg_1"))
    return _pair(entry["caption"], first, second, entry["label_0"], entry["label_1"])


def _pair(prompt: str, first: ImageSource, second: ImageSource, label: float, opposite: float) -> PreferenceGroup:
    if label + opposite != 1:
        raise ValueError(f"labels 1 and 0, 0 and 1 or 0.5 and 0.5 were expected, not {label!r} and {opposite!r}")
    return PreferenceGroup(prompt, (first, second), (Pair(0, 1, label),))


def _own_pairs(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    return _joined(entry, "first", "second", map(float, entry["label"]), find)


def _winners(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    return _joined(entry, "better", "worse", [1.0] * len(entry["better"]), find)


def _chosen(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    return _joined(entry, "chosen", "rejected", [1.0] * len(entry["chosen"]), find)


def _joined(entry: Entry, first: str, second: str, labels: Iterable[float], find: ImageFinder) -> PreferenceGroup:
    """One group of several pairs: an image that is in more than one of them is there once."""
    ends = [find.all(entry[column], column) for column in (first, second)]
    index = {source: i for i, source in enumerate(dict.fromkeys([*ends[0], *ends[1]]))}
    others = [column for column in entry if column not in ("prompt", first, second, "label")]
    pairs = [
        Pair(index[a], index[b], label, {column: entry[column][i] for column in others})
        for i, (a, b, label) in enumerate(zip(*ends, labels, strict=True))
    ]
    return PreferenceGroup(entry["prompt"][0], tuple(index), tuple(pairs))


LAYOUTS: dict[str, Layout] = {
    "image-reward": Layout(("prompt", "generations", "ranking"), _image_reward),
    "image-reward-db": Layout(("prompt_id", "prompt", "image_path", "rank"), _image_reward_db, by="prompt_id"),
    "hpd-train": Layout(("prompt", "file_path", "human_preference"), _hpd_train),
    "hpd-test": Layout(("prompt", "image_path", "rank"), _hpd_test),
    "pick-a-pic": Layout(("caption", "jpg_0", "jpg_1", "label_0", "label_1"), _pick_a_pic),
    "pairs": Layout(("prompt", "first", "second", "label"), _own_pairs, by="prompt", label="label"),
    "winners": Layout(("prompt", "better", "worse"), _winners, by="prompt", one_sided=True),
    "chosen": Layout(("prompt", "chosen", "rejected"), _chosen, by="prompt", one_sided=True),
}
"""By name; the first that fits is taken. Columns of the first five: Xu et al. 2023 (arXiv 2304.05977, THUDM/ImageReward
and ImageRewardDB), Wu et al. 2023 (arXiv 2306.09341; tgxs002/HPSv2), Kirstain et al. 2023 (arXiv 2305.01569;
yuvalkirstain/pickapic_v2). Of the last three two are for one's own
data, and "chosen" has the columns that trainers for preferences share (TRL)."""


class ImageFinder:
    """Finds the images of a data file: by their paths, or in its cells.

    Args:
        file: The data file.
        folder: Folder that paths start from; None is that of the file, or its subfolder of the file's name.
    """

    def __init__(self, file: Path, folder: Path | None):
        self._file = file
        self._folders = [folder] if folder else [file.parent, file.parent / file.stem]
        self._cells: dict[str, ImageSource] = {}
        self._row = 0

    def start(self, row: int) -> None:
        """Go on to a row of the table, counted from 1."""
        self._row = row
        self._cells.clear()

    def all(self, values: Iterable[Any], column: str = "image") -> tuple[ImageSource, ...]:
        """The images of some cells: each a path, the bytes of a file, or both as `datasets` and pandas write them.

        Args:
            values: Paths, bytes, or {"bytes": .., "path": ..}.
            column: Name of the column, for messages.

        Raises:
            UsageError: naming the first file that is not there.
            ValueError: if a cell holds nothing of the kind.
        """
        return tuple(self._one(value, f"row {self._row} {column}", i) for i, value in enumerate(values))

    def _one(self, value: Any, cell: str, number: int) -> ImageSource:
        if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str) and value:
            return self._find(value)
        if not isinstance(value, bytes):
            raise ValueError(f"an image file or its path was expected in {cell}, not {type(value).__name__}")
        digest = hashlib.sha256(value).hexdigest()
        name = f"{cell} {number + 1}" if number else cell
        return self._cells.setdefault(digest, ImageSource(self._file, name, value))

    def _find(self, name: str) -> ImageSource:
        """The file of this name, or the member of an archive that its folder was packed into."""
        for folder in self._folders:
            path = folder / name
            if path.is_file():
                return ImageSource(path)
            archive = path.parent.with_name(path.parent.name + ".zip")
            if archive.is_file() and (member := archive_members(archive).get(path.name)):
                return ImageSource(archive, member)
        raise UsageError(
            f"{self._file}: the image {name} is not in {' or '.join(map(str, self._folders))}; "
            "fetch the images, or name the folder that their paths start from"
        )
