"""From a name to a scorer: the table of what exists, and the one function that loads it.

Holds builders, not models; importing it imports neither torch nor a model library. Other packages add scorers through
the entry-point group `sp_rerank.scorers`: the name of the entry point is the scorer's, its object a function of
`device` and `dtype` that returns a `sp_rerank.types.Scorer` (try it with `sp_rerank.scorers.check.check_scorer`):

    [project.entry-points."sp_rerank.scorers"]
    my-scorer = "my_package:build"          # def build(device: str, dtype: torch.dtype | None) -> Scorer
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sp_rerank.errors import SpRerankError, StorageError, UsageError, is_device_lost, is_out_of_memory
from sp_rerank.scorers.published import PUBLISHED, Published, find

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import torch

    from sp_rerank.types import Scorer

log = logging.getLogger(__name__)

CHECKPOINT_VARIABLE = "SP_RERANK_CHECKPOINT"

_GROUP = "sp_rerank.scorers"
_EMBEDDED = Path(__file__).parents[1] / "mini"
_FOLDERS = {"clip-mini": "clip", "stable-preference-mini": "stable-preference"}
"""Of the scorers that come with the package, in `_EMBEDDED`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table of scorers.

    Attributes:
        name: what `load_scorer` takes.
        summary: one line for people.
        size: of the weights, for people; "" where unknown.
        scale: of the scores, for people; "" where unknown. Scores compare images of one prompt only.
        license: of the weights; "" where unknown.
        build: makes the scorer, given a device and a dtype.
        available: whether it can be built without a download.
    """

    name: str
    summary: str
    size: str
    scale: str
    license: str
    build: Callable[[str, torch.dtype | None], Scorer]
    available: Callable[[], bool]


def load_scorer(
    spec: str, *, device: str = "cpu", dtype: torch.dtype | None = None, revision: str | None = None
) -> Scorer:
    """Load a scorer by name.

    Args:
        spec: a name out of `available_scorers()`; "clip:ARCH/TAG" for a checkpoint that open_clip lists; or
            "sp@PLACE", where PLACE is a folder that a scorer's `save_pretrained` or `convert` wrote or, where there is
            no such folder, a repository of the model hub; or several of these joined by "+", see
            `sp_rerank.scorers.ensemble`. A published checkpoint is fetched and converted once.
        device: where to compute, as torch names it.
        dtype: of the weights; float32 by default, in whatever precision they are stored.
        revision: commit, tag or branch of a hub repository.

    Raises:
        UsageError: if nothing has this name, or a revision is given for what has none.
        HubUnavailableError: if the weights are not on this machine and the hub cannot be reached, or has them not.
        StorageError: if a file is missing or damaged.
    """
    from sp_rerank.scorers.ensemble import is_ensemble, load_ensemble

    if is_ensemble(spec):
        return load_ensemble(spec, lambda name: load_scorer(name, device=device, dtype=dtype, revision=revision))
    name, _, place = spec.partition("@")
    if name == "sp" and place:
        return _load_folder(_checkpoint_folder(place, revision), device, dtype)
    if revision is not None:
        raise UsageError(f"a revision goes with sp@OWNER/NAME only, got revision={revision!r} with {spec!r}")
    table = {entry.name: entry for entry in available_scorers()}
    if spec not in table and spec.startswith("clip:") and (row := find(spec)):
        return _load_published(row, device, dtype)
    if spec not in table:
        raise UsageError(_unknown(spec, list(table)))
    return table[spec].build(device, dtype)


def check_spec(spec: str) -> None:
    """Refuse what no scorer is called, without loading one; what a folder or a repository holds is not looked at.

    Raises:
        UsageError: As `load_scorer`.
    """
    from sp_rerank.scorers.ensemble import is_ensemble, members_of

    names = members_of(spec)[0] if is_ensemble(spec) else [spec]
    table = [entry.name for entry in available_scorers()]
    for name in names:
        if name not in table and not name.startswith("sp@") and not (name.startswith("clip:") and find(name)):
            raise UsageError(_unknown(name, table))


def available_scorers() -> list[Entry]:
    """The table: our own scorers first, then those of other packages that are installed."""
    from importlib.metadata import entry_points

    added = [_entry_of(point) for point in entry_points(group=_GROUP) if point.name not in _OWN]
    return [*_OWN.values(), *sorted(added, key=lambda entry: entry.name)]


def resolve_sp(for_model: str | None) -> tuple[str, str]:
    """What "sp" means beside a text-to-image model.

    Args:
        for_model: "mini", or the name of the diffusers model that makes the images; None where that is not known.

    Returns:
        The spec to load, and one line for people that says why.
    """
    checkpoint = os.environ.get(CHECKPOINT_VARIABLE)
    if checkpoint:
        return f"sp@{checkpoint}", f"scorer: the checkpoint {checkpoint}, named by {CHECKPOINT_VARIABLE}"
    if for_model == "mini":
        name = "stable-preference-mini"
        return name, f"scorer: {name}, which belongs to the mini model; {CHECKPOINT_VARIABLE} names another"
    return "hps-v2.1", (
        f"scorer: hps-v2.1, for no Stable Preference checkpoint belongs to {for_model or 'images of unknown origin'}; "
        f"{CHECKPOINT_VARIABLE} names one, another scorer can be named"
    )


def resolve_spec(spec: str, for_model: str | None) -> tuple[str, str | None]:
    """A scorer's spec with "sp" in it, alone or among others ("2*sp+clip-l"), replaced by what it means.

    Returns:
        The spec to load, and why where the choice was ours.
    """
    parts = [part.rpartition("*") for part in spec.split("+")]
    if all(name != "sp" for *_, name in parts):
        return spec, None
    found, why = resolve_sp(for_model)
    return "+".join(f"{weight}{times}{found if name == 'sp' else name}" for weight, times, name in parts), why


def known_folders(name: str) -> list[Path]:
    """Where the table keeps the weights of a scorer, by its name without the hash; none for one that it has not."""
    if name in _FOLDERS:
        return [_EMBEDDED / _FOLDERS[name]]
    return [PUBLISHED[name].folder] if name in PUBLISHED else []


def _unknown(spec: str, names: list[str]) -> str:
    near = difflib.get_close_matches(spec, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    names_and_forms = ", ".join([*names, "clip:ARCH/TAG", "sp@FOLDER-OR-REPOSITORY"])
    return f"expected a scorer out of {names_and_forms}, got {spec!r}{hint}"


def _entry_of(point: EntryPoint) -> Entry:
    package = point.dist.name if point.dist else point.module

    def build(device: str, dtype: torch.dtype | None) -> Scorer:
        try:
            builder = point.load()
        except Exception as error:  # what a module of others does when it is imported
            raise UsageError(
                f"scorer {point.name!r} of the package {package} does not import: {_brief(error)}"
            ) from error
        try:
            scorer = builder(device=device, dtype=dtype)
        except Exception as error:
            if isinstance(error, SpRerankError) or is_out_of_memory(error) or is_device_lost(error):
                raise
            raise UsageError(
                f"scorer {point.name!r} of the package {package} cannot be built: {_brief(error)}"
            ) from error
        if not any(callable(getattr(scorer, method, None)) for method in ("score", "compare")):
            raise UsageError(
                f"scorer {point.name!r} of the package {package}: expected an object with a name and a method score "
                f"(compare for pairs), got a {type(scorer).__name__}"
            )
        return scorer

    return Entry(point.name, f"plug-in of the package {package}", "", "", "", build, lambda: True)


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


_CLASSES = {
    "DualEncoder": "clip",
    "BlipScorer": "blip",
    "MpsScorer": "mps",
    "SigLipEncoder": "siglip",
    "AestheticScorer": "aesthetic",
    "TasteScorer": "taste",
}
"""The module of each class that a checkpoint's config.json may name."""


def _load_folder(folder: Path, device: str, dtype: torch.dtype | None) -> Scorer:
    """The scorer in a folder written by `save_pretrained`, of the class that its config.json names."""
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: expected a scorer's folder, found no config.json in it") from error
    except (OSError, ValueError, AttributeError) as error:
        raise StorageError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if name not in _CLASSES:
        raise UsageError(f"{folder}: expected a scorer ({', '.join(_CLASSES)}), its config.json is of a {name!r}")
    scorer_class = getattr(import_module(f"sp_rerank.scorers.{_CLASSES[name]}"), name)
    return scorer_class.from_pretrained(folder, torch_dtype=dtype).to(device)


def _checkpoint_folder(place: str, revision: str | None) -> Path:
    folder = Path(place).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"a revision goes with a hub repository, but {place} is a folder")
        return folder
    if folder.exists() or folder.is_absolute() or place.startswith("."):
        raise UsageError(f"{place}: expected a folder with a scorer's config.json, found no such folder")
    from sp_rerank.storage.hub import fetch

    return fetch(place, revision)


def _build_sp(device: str, dtype: torch.dtype | None) -> Scorer:
    spec, why = resolve_sp(None)
    log.info(why)
    return load_scorer(spec, device=device, dtype=dtype)


def _build_embedded(name: str, device: str, dtype: torch.dtype | None) -> Scorer:
    folder = _EMBEDDED / _FOLDERS[name]
    if not folder.is_dir():
        raise StorageError(f"{folder}: the embedded model is missing from this installation; install it again")
    return _load_folder(folder, device, dtype)


def _load_published(row: Published, device: str, dtype: torch.dtype | None) -> Scorer:
    if row.is_converted():
        return _load_folder(row.folder, device, dtype)
    from sp_rerank.scorers.convert import fetch_and_convert

    return _load_folder(fetch_and_convert(row), device, dtype)


def _published_entry(row: Published) -> Entry:
    return Entry(row.name, row.summary, row.size, row.scale, row.license, partial(_load_published, row), row.is_here)


def _build_brightness(device: str, dtype: torch.dtype | None) -> Scorer:
    from sp_rerank.scorers.brightness import BrightnessScorer

    return BrightnessScorer()


_OWN = {
    entry.name: entry
    for entry in (
        Entry(
            name="sp",
            summary=f"the checkpoint that {CHECKPOINT_VARIABLE} names, else hps-v2.1; sp@PLACE names one outright",
            size="",
            scale="its own",
            license="its own",
            build=_build_sp,
            available=lambda: bool(os.environ.get(CHECKPOINT_VARIABLE)) or PUBLISHED["hps-v2.1"].is_here(),
        ),
        Entry(
            name="clip-mini",
            summary="a small CLIP trained on the mini world, embedded here",
            size="6 MB",
            scale="cosine",
            license="Apache-2.0",
            build=partial(_build_embedded, "clip-mini"),
            available=lambda: True,
        ),
        Entry(
            name="stable-preference-mini",
            summary="clip-mini after Stable Preference on simulated people: sp beside the mini model; embedded here",
            size="6 MB",
            scale="cosine",
            license="Apache-2.0",
            build=partial(_build_embedded, "stable-preference-mini"),
            available=lambda: True,
        ),
        *map(_published_entry, PUBLISHED.values()),
        Entry(
            name="brightness",
            summary="mean brightness of the image; no model, for tests and first tries",
            size="none",
            scale="0..1",
            license="Apache-2.0",
            build=_build_brightness,
            available=lambda: True,
        ),
    )
}
