"""What a training run keeps on the disk: what it is, checkpoints that are whole or absent.

    training.json               schema, recipe, hashes of the data; a run with others does not go on here
    checkpoints/step-000500/    state.safetensors and progress.json, written elsewhere and renamed
    checkpoints/latest.json     the two newest, with the hash of each file; written last, so a name in it means done

No random state is kept: every draw of a training step is a function of the seed and the step. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.storage import atomic
from sp_rerank.storage.atomic import replace_folder, sha256_of
from sp_rerank.train.preferences import PreferenceGroup
from sp_rerank.train.recipe import shorten

log = logging.getLogger(__name__)

SCHEMA = 1
KEPT = 2

_FOLDER, _POINTER, _STATE, _PROGRESS = "checkpoints", "latest.json", "state.safetensors", "progress.json"
_STEP, _HASH = re.compile(r"step-\d{6,9}"), re.compile(r"[0-9a-f]{64}")
_IDENTITY = "training.json"


def data_sha256(groups: Sequence[PreferenceGroup]) -> str:
    """Of prompts, names of image files and labels, wherever the files lie; the pixels are not looked at."""
    digest = hashlib.sha256()
    for group in groups:
        pairs = [(pair.first, pair.second, pair.label) for pair in group.pairs]
        names = [(image.path.name, image.member) for image in group.images]
        digest.update(json.dumps([group.prompt, names, pairs]).encode())
    return digest.hexdigest()


def check_folder(out: Path, identity: dict[str, Any], resume: bool) -> None:
    """Refuse a folder of something else, before anything is written.

    Args:
        out: Folder of the run.
        identity: What makes a run the same: "schema", "recipe", "base", "data", "validation".
        resume: Whether a run with this identity may be there already.

    Raises:
        UsageError: if something else is there, or such a run and `resume` is False.
        StorageError: if its training.json is damaged.
    """
    file = out / _IDENTITY
    if not file.exists():
        found = [path.name for path in out.iterdir()] if out.is_dir() else []
        if (out.exists() and not out.is_dir()) or set(found) - {atomic.LOCK, file.name + atomic.TEMPORARY_SUFFIX}:
            raise UsageError(f"{out}: expected a new or empty folder, or one of a training run; choose another one")
        return
    stored = read_schema(file)
    recipe = stored.get("recipe")
    if not isinstance(recipe, dict):
        raise StorageError(f"{file}: expected the recipe of a training run, got none; begin anew in another folder")
    differing = [f"recipe.{key}" for key, value in identity["recipe"].items() if recipe.get(key) != value]
    differing += [key for key in ("base", "data", "validation") if stored.get(key) != identity[key]]
    if differing:
        raise UsageError(
            f"{out} holds a run that differs in {', '.join(differing)}; choose another folder for this one"
        )
    if not resume:
        raise UsageError(f"{out} holds this run already; resume it, or begin anew in another folder")


def begin(out: Path, identity: dict[str, Any]) -> None:
    """Write down what the run is, unless it is there already."""
    if not (out / _IDENTITY).exists():
        atomic.write(out / _IDENTITY, json.dumps(identity, indent=1).encode())


def save(out: Path, step: int, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Keep a checkpoint; the one before it is kept too, older ones are removed.

    Killed at any moment, it leaves at least the checkpoint that was the newest before.

    Raises:
        StorageError: if it cannot be written.
    """
    folder = out / _FOLDER
    target = folder / f"step-{step:06d}"

    def write(place: Path) -> None:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(contiguous, place / _STATE)
        (place / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    replace_folder(target, write)
    kept = [{"folder": target.name, "sha256": {name: sha256_of(target / name) for name in (_STATE, _PROGRESS)}}]
    kept += [entry for entry in _entries(out) if entry["folder"] != target.name]
    pointer = {"schema": SCHEMA, "checkpoints": kept[:KEPT]}
    atomic.write(folder / _POINTER, json.dumps(pointer, indent=1).encode())
    for other in folder.iterdir():
        if other.is_dir() and other.name not in {entry["folder"] for entry in kept[:KEPT]}:
            shutil.rmtree(other, ignore_errors=True)


def load(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose files have their hashes, as (tensors, progress); None where none was made yet.

    Raises:
        UsageError: if a newer version of this library wrote it.
        StorageError: if there are checkpoints and all of them are damaged.
    """
    entries = _entries(out)
    for entry in entries:
        place = out / _FOLDER / entry["folder"]
        try:
            damaged = [name for name, digest in entry["sha256"].items() if sha256_of(place / name) != digest]
            if not damaged:
                progress = json.loads((place / _PROGRESS).read_text(encoding="utf-8"))
                return safetensors.torch.load_file(place / _STATE), progress
        except OSError as error:
            damaged = [f"{error.strerror or error}"]
        except (ValueError, RecursionError, safetensors.SafetensorError) as error:
            damaged = [f"{error or type(error).__name__}"]
        log.warning("%s is damaged (%s); taking the checkpoint before it", place, ", ".join(damaged))
    if entries:
        raise StorageError(f"{out / _FOLDER}: every checkpoint is damaged; begin anew in another folder")
    return None


def read_schema(file: Path) -> dict[str, Any]:
    """A JSON object with its "schema", which must be ours.

    Raises:
        UsageError: if it is of a newer version.
        StorageError: if it cannot be read, or is no such object.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"{file} cannot be read: {reason or type(error).__name__}") from error
    if not isinstance(stored, dict) or type(stored.get("schema")) is not int or stored["schema"] < 1:
        raise StorageError(f"{file}: expected a JSON object with a schema number, got something else")
    if stored["schema"] > SCHEMA:
        raise UsageError(
            f"{file}: expected schema {SCHEMA}, got {shorten(stored['schema'])}; a newer version of sp-rerank wrote it"
        )
    return stored


def _entries(out: Path) -> list[dict[str, Any]]:
    """Name and hashes of each checkpoint, the newest first; where the pointer is damaged, those that lie beside it."""
    folder = out / _FOLDER
    pointer = folder / _POINTER
    if pointer.exists():
        try:
            return _checked_entries(pointer, read_schema(pointer).get("checkpoints"))
        except StorageError as error:
            log.warning("%s; taking the checkpoints that lie beside it", error)
    return _complete(folder)


def _checked_entries(pointer: Path, stored: Any) -> list[dict[str, Any]]:
    if not isinstance(stored, list) or not stored or not all(map(_is_entry, stored)):
        raise StorageError(f"{pointer}: expected checkpoints with the hashes of their files, got something else")
    return stored


def _is_entry(entry: Any) -> bool:
    """Whether it names a folder of ours and the hash of each of its files."""
    if not isinstance(entry, dict) or set(entry) != {"folder", "sha256"}:
        return False
    folder, hashes = entry["folder"], entry["sha256"]
    if not isinstance(hashes, dict) or set(hashes) != {_STATE, _PROGRESS}:
        return False
    named = [(_STEP, folder), *((_HASH, digest) for digest in hashes.values())]
    return all(isinstance(text, str) and pattern.fullmatch(text) for pattern, text in named)


def _complete(folder: Path) -> list[dict[str, Any]]:
    """The checkpoints in a folder, the newest first: each was renamed to its name when it was complete."""
    if not folder.is_dir():
        return []
    with atomic.storage_errors(folder):
        places = [path for path in folder.iterdir() if _STEP.fullmatch(path.name) and not path.is_symlink()]
        places = [path for path in places if (path / _STATE).is_file() and (path / _PROGRESS).is_file()]
        return [
            {"folder": path.name, "sha256": {name: sha256_of(path / name) for name in (_STATE, _PROGRESS)}}
            for path in sorted(places, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
        ]
