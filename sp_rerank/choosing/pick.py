"""What a person picked out of a run: copies of the images, a list of them, and marks in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sp_rerank.choosing.store import AnswerStore, Kind, Mark
from sp_rerank.errors import UsageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.json_text import loads
from sp_rerank.storage import atomic

LIST = "picks.json"


@dataclass(frozen=True, slots=True)
class Picked:
    """What came of it.

    Attributes:
        files: The copies, in the order of the picks.
        favorites: Indices of the images that were marked as favorites.
        rejected: Indices of the images that were rejected.
    """

    files: tuple[Path, ...]
    favorites: tuple[int, ...]
    rejected: tuple[int, ...]


def pick(
    run: RunDir,
    indices: Sequence[int],
    out: Path,
    *,
    rejected: Sequence[int] = (),
    store: AnswerStore,
    annotator: str = "me",
) -> Picked:
    """Copy images of a run as they were committed, with all that is written in them, and mark them.

    Args:
        run: Any run with a prompt.
        indices: Of the picked candidates, the best first; at least one, or one rejected.
        out: Folder of the copies, 01_seed64.png and so on, and of picks.json; other picks of the same run take the
            place of older ones.
        rejected: Indices of candidates that are no good.
        store: Keeps the marks.
        annotator: Who picks.

    Raises:
        UsageError: If an index is not in the run, is named twice, or there is none; if `out` holds the picks of
            another run.
        StorageError: If an image was changed or a file cannot be written; no mark is kept then.
    """
    named = [*indices, *rejected]
    twice = sorted({index for index in named if named.count(index) > 1})
    if not named or twice:
        found = f"{twice[0]} twice" if twice else "none"
        raise UsageError(f"expected the indices of candidates to pick or reject, each once, got {found}")
    prompt = run.config.prompt
    if prompt is None:
        raise UsageError(f"{run.path}: its run.json names no prompt; expected a run with one")
    pictures = {index: run.image_bytes(index) for index in named}
    copies = {out / f"{place:02d}_seed{run.rows[index].seed}.png": index for place, index in enumerate(indices, 1)}
    if copies:
        stale = _earlier(out, run)
        with atomic.storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        atomic.write_all({path: pictures[index] for path, index in copies.items()})
        atomic.write(out / LIST, _list(run, {path.name: index for path, index in copies.items()}, rejected))
        with atomic.storage_errors(out):
            for path in set(stale) - copies.keys():
                path.unlink()
    usable = {row.sha256: run.image(index) for index, row in run.rows.items() if row.status == "ok"}
    store.remember(prompt, {**usable, **{run.rows[index].sha256: run.image(index) for index in named}})
    kinds: dict[Kind, Sequence[int]] = {"favorite": indices, "reject": rejected}
    for kind, marked in kinds.items():
        for index in marked:
            store.mark(Mark(prompt, run.rows[index].sha256, kind, annotator))
    return Picked(tuple(copies), tuple(indices), tuple(rejected))


def _earlier(out: Path, run: RunDir) -> list[Path]:
    """The copies of an earlier list of the same run, as far as they are as they were written."""
    file = out / LIST
    with atomic.storage_errors(file):
        if not file.is_file():
            return []
        try:
            record = loads(file.read_bytes())
            origin = record["prompt"], record["run"]
            copies = {out / Path(str(entry["file"])).name: str(entry["sha256"]) for entry in record["picks"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is no list of picks; choose another folder") from error
        if origin != (run.config.prompt, run.path.absolute().name):
            raise UsageError(f"{out} holds picks of another run, {origin[1]!r}; choose another folder")
        return [path for path, sha256 in copies.items() if path.is_file() and atomic.sha256_of(path) == sha256]


def _list(run: RunDir, copies: dict[str, int], rejected: Sequence[int]) -> bytes:
    """picks.json: which images, of which run, with what they scored."""

    def entry(index: int) -> dict[str, object]:
        row = run.rows[index]
        return {"index": index, "seed": row.seed, "sha256": row.sha256, "scores": row.scores}

    record = {
        "prompt": run.config.prompt,
        "run": run.path.absolute().name,
        "model": run.config.model,
        "picks": [{"file": name, **entry(index)} for name, index in copies.items()],
        "rejected": [entry(index) for index in rejected],
    }
    return json.dumps(record, indent=2, allow_nan=False).encode() + b"\n"
