"""Answers as rows of the layout for one's own preference data, and as files of it; docs/preference-data.md has it.

Knows the store and image files; knows nothing of how rows become training data.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sp_rerank.choosing.store import Answer, AnswerStore, relative_to
from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.storage import atomic, image_files

log = logging.getLogger(__name__)

COLUMNS: tuple[str, ...] = (
    "prompt", "first", "second", "label", "annotator", "both_bad", "answered_ms", "repeat", "shown_at", "chooser",
)  # fmt: skip
"""The first four are the layout; the others tell how the answer came about."""

SUFFIXES = (".csv", ".jsonl")


def rows(store: AnswerStore, *, annotator: str | None = None, images: Path | None = None) -> Iterator[dict[str, Any]]:
    """The answers that stand, in their order; skipped questions and images that are gone are left out, and counted in a
    log warning.

    Args:
        store: Where they are.
        annotator: Whose answers; None is everyone's.
        images: A folder to look for images in, by their SHA-256, besides where they were seen last.

    Yields:
        COLUMNS by name; images as absolute paths.

    Raises:
        NothingUsableError: If there is no answer whose images are there.
    """
    answers = store.answers(annotator)
    find = _Finder(store, images)
    skipped = lost = used = 0
    for answer in answers:
        left, right = (find(answer.prompt, sha256) for sha256 in _sides(answer))
        if answer.label is None:
            skipped += 1
        elif left is None or right is None:
            lost += 1
        else:
            used += 1
            yield {
                "prompt": answer.prompt, "first": str(left), "second": str(right), "label": answer.label_of_left,
                "annotator": answer.annotator, "both_bad": int(answer.both_bad), "answered_ms": answer.answered_ms,
                "repeat": int(answer.repeat_of is not None), "shown_at": answer.shown_at, "chooser": answer.chooser,
            }  # fmt: skip
    if skipped:
        log.warning("%s: %d skipped questions left out", store.path, skipped)
    if lost:
        log.warning("%s: %d answers left out: their images are gone or were changed", store.path, lost)
    if not used:
        whose = f" by {annotator}" if annotator else ""
        raise NothingUsableError(
            f"{store.path}: no answer{whose} whose images are there, of {len(answers)}; expected one or more; name the "
            "folder of the images if they were moved"
        )


def write_rows(store: AnswerStore, file: Path, annotator: str | None = None) -> int:
    """Write the answers into a CSV or JSONL file, images by their paths from its folder.

    Returns:
        How many answers.

    Raises:
        UsageError: If the name ends otherwise.
        NothingUsableError: If there is none; see `rows`.
        StorageError: If it cannot be written.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{file}: expected a name that ends in {' or '.join(SUFFIXES)}")
    found = [dict(row) for row in rows(store, annotator=annotator)]
    for row in found:
        row.update({end: relative_to(file.parent, Path(row[end])) for end in ("first", "second")})
    atomic.write(file, _csv(found) if file.suffix.lower() == ".csv" else _jsonl(found))
    return len(found)


def _csv(found: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().encode("utf-8", "replace")


def _jsonl(found: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in found)


class _Finder:
    """Finds images by prompt and SHA-256: where they were seen last, or in a folder; each is read once."""

    def __init__(self, store: AnswerStore, folder: Path | None) -> None:
        self._seen = store.images()
        self._folder = folder
        self._checked: dict[tuple[str, str], Path | None] = {}
        self._in_folder: dict[str, Path] | None = None

    def __call__(self, prompt: str, sha256: str) -> Path | None:
        key = prompt, sha256
        if key not in self._checked:
            path = self._seen.get(prompt, {}).get(sha256)
            self._checked[key] = path if path and _is(path, sha256) else self._look(sha256)
        return self._checked[key]

    def _look(self, sha256: str) -> Path | None:
        if self._folder is None:
            return None
        if self._in_folder is None:
            files = image_files.find_images([self._folder], recursive=True).files
            self._in_folder = {atomic.sha256_of(path): path.absolute() for path in files}
        return self._in_folder.get(sha256)


def _sides(answer: Answer) -> tuple[str, str]:
    """The images on the left and on the right, by SHA-256: which was first was no chance, which was left was."""
    ends = answer.first, answer.second
    return ends if answer.first_side == "left" else (answer.second, answer.first)


def _is(path: Path, sha256: str) -> bool:
    try:
        return atomic.sha256_of(path) == sha256
    except OSError:
        return False
