"""The layouts of preference data: an entry in, a group out, None for an entry without a label.

Knows the columns of the published data sets and of one's own. Knows nothing of how a file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
        columns: that it has.
        group: makes a group of an entry, given what finds its images.
        others: whether further columns are expected too, and ignored.
        by: the column whose values make entries one group, which then comes as a list a column.
        one_sided: whether all labels are the same by the nature of the layout.
    """

    columns: tuple[str, ...]
    group: Callable[[Entry, ImageFinder], PreferenceGroup | None]
    others: bool = True
    by: str | None = None
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
    opinions = [one["rank"] for one in entry.get("raw_annotations") or ()]
    return PreferenceGroup.ranked(entry["prompt"], find.all(entry["image_path"]), entry["rank"], opinions)


def _pick_a_pic(entry: Entry, find: ImageFinder) -> PreferenceGroup | None:
    if entry.get("has_label") is False:
        return None
    first, second = (find.in_table(column, entry[column]) for column in ("jpg_0", "jpg_1"))
    return _pair(entry["caption"], first, second, entry["label_0"], entry["label_1"])


def _pair(prompt: str, first: ImageSource, second: ImageSource, label: float, opposite: float) -> PreferenceGroup:
    if label + opposite != 1:
        raise ValueError(f"labels 1 and 0, 0 and 1 or 0.5 and 0.5 were expected, not {label!r} and {opposite!r}")
    return PreferenceGroup(prompt, (first, second), (Pair(0, 1, label),))


def _own_pairs(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    return _joined(entry["prompt"][0], entry["first"], entry["second"], map(float, entry["label"]), find)


def _winners(entry: Entry, find: ImageFinder) -> PreferenceGroup:
    return _joined(entry["prompt"][0], entry["better"], entry["worse"], [1.0] * len(entry["better"]), find)


def _joined(
    prompt: str, firsts: Sequence[str], seconds: Sequence[str], labels: Iterable[float], find: ImageFinder
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


class ImageFinder:
    """Where the images of a data file are."""

    def __init__(self, file: Path, folder: Path | None):
        self.file = file
        self.folders = [folder] if folder else [file.parent, file.parent / file.stem]
        self.row = 0  # of the table, from 1 on

    def all(self, names: Iterable[str]) -> tuple[ImageSource, ...]:
        """The images of these names.

        Raises:
            UsageError: naming the first that is not there.
        """
        return tuple(map(self._find, names))

    def _find(self, name: str) -> ImageSource:
        """The file of this name, or the member of an archive that its folder was packed into."""
        for folder in self.folders:
            path = folder / name
            if path.is_file():
                return ImageSource(path)
            archive = path.parent.with_name(path.parent.name + ".zip")
            if archive.is_file() and (member := archive_members(archive).get(path.name)):
                return ImageSource(archive, member)
        raise UsageError(
            f"{self.file}: the image {name} is not in {' or '.join(map(str, self.folders))}; "
            "fetch the images, or name the folder that their paths start from"
        )

    def in_table(self, column: str, data: bytes) -> ImageSource:
        """The image in a cell of the present row.

        Raises:
            ValueError: if the cell does not hold the bytes of a file.
        """
        if not isinstance(data, bytes):
            raise ValueError(f"an image file was expected in {column}, not {type(data).__name__}")
        return ImageSource(self.file, f"row {self.row} {column}", data)
