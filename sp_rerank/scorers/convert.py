"""The one place that opens a published .pt, .bin or .pth: once, as tensors only, into a folder of safetensors.

A pickle can run code when it is opened, and `torch.load(weights_only=True)` was bypassed twice (CVE-2025-32434,
CVE-2026-24747). So nothing else here opens one: the file's size and hash are looked at first, its tensors must have the
names and shapes of the architecture in the table, and what is kept is config.json beside one safetensors file, in the
precision of the original. Knows the names of `published`, not the registry. It is longer than 350 lines, for what opens
a pickle and what checks it stay together.
"""

from __future__ import annotations

import difflib
import json
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import open_clip
import safetensors
import safetensors.torch
import torch
from diffusers.utils.constants import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from sp_rerank.errors import HubUnavailableError, StorageError, UsageError
from sp_rerank.scorers.base import ScorerModel, check_tensors, shapes_of
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.preprocess import Preprocess
from sp_rerank.scorers.published import PUBLISHED, Published, find
from sp_rerank.scorers.tensor_names import State, from_open_clip, from_transformers
from sp_rerank.storage.atomic import locked, replace_folder, sha256_of
from sp_rerank.storage.hub import fetch_file

# No published file is larger: the largest, HPS_v2.pt with its optimizer, has 8.1 GB, a head of a few layers 4 MB.
_LARGEST_NETWORK, _LARGEST_HEAD = 10 * 10**9, 10**8

_LFS_POINTER = b"version https://git-lfs"
# What BLIP appends to BERT's vocabulary, in its order; source: salesforce/BLIP, models/blip.py.
_ADDED_TOKENS = ["[DEC]", "[ENC]"]


def convert(file: Path, as_name: str, *, out: Path | None = None, origin: str | None = None) -> Path:
    """Turn a published checkpoint into a scorer's folder, config.json beside one safetensors file.

    A second call with the same file does nothing; one with another file replaces the folder as a whole.

    Args:
        file: the checkpoint as published: a state dict (.pt, .bin, .pth), perhaps under the key "state_dict", or
            safetensors; of MPS the module. Beside an ImageReward.pt may lie the vocab.txt of bert-base-uncased; it is
            fetched otherwise.
        as_name: which checkpoint it is, a name out of `published` or clip:ARCH/TAG.
        out: the folder to write; by default the place in the cache where `load_scorer(as_name)` finds it.
        origin: where the file came from, for the record; its name by default.

    Returns:
        The folder.

    Raises:
        UsageError: if the name is unknown, or the file is not what the name says: another architecture, another
            length, no state dict, a pickle of more than tensors.
        StorageError: if the file is missing, damaged or not the published one, or the folder cannot be written.
        HubUnavailableError: if a vocabulary or clip-l is needed besides, and is neither here nor to be had.
    """
    row = find(as_name)
    if row is None:
        near = difflib.get_close_matches(as_name, PUBLISHED, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"expected the name of a checkpoint, {', '.join(PUBLISHED)} or clip:ARCH/TAG, got {as_name!r}{hint}"
        )
    folder = (out or row.folder).absolute()
    digest = _checked_digest(file, row)
    if _is_conversion(folder, row, digest):
        return folder
    if folder.exists() and not _is_replaceable(folder):
        raise UsageError(f"{folder}: expected a place for a new folder or a scorer's folder to replace, found another")
    scorer = _BUILDERS[row.form](file, row, f"{origin or file.name}, sha256 {digest}")
    # In the cache, where several processes of one training may want the same scorer.
    with locked(folder.parent, wait=True) if out is None else nullcontext():
        if not _is_conversion(folder, row, digest):
            replace_folder(folder, scorer.save_pretrained)
    return folder


def fetch_and_convert(row: Published) -> Path:
    """The folder of a checkpoint, converted now unless it was before; its file comes from the hub or its cache.

    Raises:
        HubUnavailableError: if no hub has the file, or it is not in the cache and the hub does not answer.
        UsageError, StorageError: as `convert` does.
    """
    if row.is_converted():
        return row.folder
    if not row.repo:
        raise HubUnavailableError(
            f"the weights of {row.name} are on no model hub; fetch {row.files[0]} from {row.url}, "
            f"then run `sp-rerank scorers convert {row.files[0]} --as {row.name}`"
        )
    file, commit = fetch_file(row.repo, row.files, row.revision)
    return convert(file, row.name, origin=f"{row.repo}@{commit}/{file.name}")


def checkpoint_name(folder: Path) -> str:
    """The `name` of the scorer in a folder, without loading it."""
    stored = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    return f"{stored['name']}@{sha256_of(folder / SAFETENSORS_WEIGHTS_NAME)[:12]}"


def _checked_digest(file: Path, row: Published) -> str:
    """The SHA-256 of a file whose length is in order, and which is the published one where that one is known."""
    try:
        length = file.stat().st_size
        if file.is_file():
            _refuse_pointer(file)
        largest = _LARGEST_HEAD if row.form == "aesthetic" else _LARGEST_NETWORK
        if not file.is_file() or length > largest or (row.length and length != row.length):
            expected = f"{row.length} bytes" if row.length else f"a file of at most {largest} bytes"
            raise UsageError(f"{file}: expected {row.files[0]} of {row.name}, {expected}, found {length}")
        digest = sha256_of(file)
    except UsageError:
        raise
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}") from error
    if row.sha256 and digest != row.sha256:
        raise StorageError(
            f"{file}: damaged, or not {row.files[0]} of {row.name}: expected the SHA-256 {row.sha256}, "
            f"got {digest}; fetch it again"
        )
    return digest


def _refuse_pointer(file: Path) -> None:
    """Refuse what a clone without git-lfs has in place of a large file."""
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UsageError(
                f"{file} is a git-lfs pointer, which only names the checkpoint; expected the file itself: run "
                "`git lfs pull` where it comes from"
            )


def _is_conversion(folder: Path, row: Published, digest: str) -> bool:
    """Whether a folder holds the scorer that this name and the file with this hash give."""
    try:
        stored = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        same = stored["name"] == row.name and digest in stored["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and (folder / SAFETENSORS_WEIGHTS_NAME).is_file()


def _is_replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / CONFIG_NAME).is_file() or not any(folder.iterdir()))


def read_tensors(file: Path, *, of_module: bool = False) -> State:
    """The tensors of a checkpoint, on the CPU, in the precision of the file.

    Args:
        file: safetensors, or a state dict as `torch.save` writes it, perhaps under the key "state_dict" and with the
            prefix "module." of a distributed training. Which of the two is told by the content.
        of_module: take also a whole `torch.nn.Module`, as `torch.save(model)` writes it: its tensors are read by their
            places in it, and none of the classes that it names is imported or run.

    Raises:
        UsageError: if it is something else.
        StorageError: if it is damaged.
    """
    with file.open("rb") as opened:
        head = opened.read(262)
    if head[257:262] == b"ustar":
        raise UsageError(
            f"{file}: refused, for it is a tar archive of pickles, as PyTorch wrote them before 0.2; expected a state "
            "dict as torch.save writes it now, or safetensors"
        )
    if head[8:9] == b"{":
        try:
            return safetensors.torch.load_file(file)
        except safetensors.SafetensorError as error:
            raise StorageError(f"{file}: damaged, not a complete safetensors file ({error}); fetch it again") from error
    # A zip archive's tensors stay on the disk until they are needed.
    loaded = (_unpickle_module if of_module and head.startswith(b"PK") else _unpickle)(file, head.startswith(b"PK"))
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UsageError(f"{file}: expected a state dict, names with tensors, got a {type(loaded).__name__} of others")
    if all(key.startswith("module.") for key in loaded):
        return {key.removeprefix("module."): value for key, value in loaded.items()}
    return dict(loaded)


class _StandIn:
    """What stands for an object of a class that is not to be imported: it keeps the state and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensors(self, prefix: str = "") -> State:
        """Parameters and buffers of a module by their names, as its `state_dict` would give them."""
        state = self.state if isinstance(self.state, dict) else {}
        passing = state.get("_non_persistent_buffers_set") or ()
        own = {**state.get("_parameters", {}), **state.get("_buffers", {})}
        found = {f"{prefix}{key}": value for key, value in own.items() if value is not None and key not in passing}
        for key, inner in state.get("_modules", {}).items():
            found |= inner.tensors(f"{prefix}{key}.") if isinstance(inner, _StandIn) else {}
        return found


def _unpickle_module(file: Path, mmap: bool) -> Any:
    """As `_unpickle`; for every class that the file names, torch's own among them, stands one that does nothing."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception:  # no archive that can be read: the reader of state dicts says why
        names = []
    stand_ins: list[Any] = [(type("StandIn", (_StandIn,), {}), name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        loaded = _unpickle(file, mmap)
    return loaded.tensors() if isinstance(loaded, _StandIn) else loaded


def _unpickle(file: Path, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about old pickles; what matters is raised
            return torch.load(str(file), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{file}: refused, for it is no file of tensors or would run code when opened; expected a state dict as "
            "torch.save writes it, or safetensors"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise UsageError(
                f"{file}: expected a state dict, got a TorchScript archive; take the file that the table names"
            ) from error
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(f"{file}: damaged, not a complete checkpoint ({why}); fetch it again") from error


def build_dual_encoder(state: State, described: dict[str, Any], row: Published, source: str) -> DualEncoder:
    """A dual encoder that holds these very tensors; for saving, not for scoring.

    Args:
        state: with open_clip's names.
        described: the architecture, as `open_clip.get_model_config` gives it.
        row: what the checkpoint is.
        source: for the record.

    Raises:
        UsageError: if the tensors are not those of the architecture.
    """
    with torch.device("meta"):
        encoder = DualEncoder(
            name=row.name,
            embed_dim=described["embed_dim"],
            vision_cfg=described["vision_cfg"],
            text_cfg=described["text_cfg"],
            quick_gelu=described.get("quick_gelu", False),
            preprocess=Preprocess.from_dict(row.preprocess).to_dict(),
            score_scale=row.scale,
            license=row.license,
            source=source,
            text_cleaning="nfc" if row.form == "transformers" else "ftfy",
        )
    expected = shapes_of(encoder.clip.state_dict())
    check_tensors(shapes_of(state), expected, row.name, f"of {row.architecture}, which {row.files[0]} has")
    encoder.clip.load_state_dict(state, assign=True)
    return encoder


def _dual_encoder_of(file: Path, row: Published, source: str) -> ScorerModel:
    rename = from_transformers if row.form == "transformers" else from_open_clip
    described = open_clip.get_model_config(row.architecture)
    assert described is not None, f"{row.architecture} is in the table, but not in open_clip"
    return build_dual_encoder(rename(read_tensors(file)), described, row, source)


def _siglip_of(file: Path, row: Published, source: str) -> ScorerModel:
    from sp_rerank.scorers.siglip import SigLipEncoder

    described: Any = open_clip.get_model_config(row.architecture)
    with torch.device("meta"):
        encoder = SigLipEncoder(
            name=row.name,
            embed_dim=described["embed_dim"],
            vision_cfg=described["vision_cfg"],
            text_cfg=described["text_cfg"],
            preprocess=Preprocess.from_dict(row.preprocess).to_dict(),
            score_scale=row.scale,
            license=row.license,
            source=source,
        )
    scalars = ("logit_scale", "logit_bias")
    tensors = read_tensors(file)
    state = {
        key: value.reshape(()) if key in scalars and value.numel() == 1 else value for key, value in tensors.items()
    }
    check_tensors(shapes_of(state), shapes_of(encoder.clip.state_dict()), row.name, f"of {row.architecture}")
    encoder.clip.load_state_dict(state, assign=True)
    encoder.take_tokenizer(_vocabulary_file(file, row))
    return encoder


def _blip_of(file: Path, row: Published, source: str) -> ScorerModel:
    from sp_rerank.scorers.blip import from_original

    head = {"image_reward": "reward", "blip_itm": "itm", "cycle_reward": "cycle"}[row.form]
    state = read_tensors(file)
    return from_original(state, _vocabulary(file, row), head=head, name=row.name, source=source, license=row.license)


def _mps_of(file: Path, row: Published, source: str) -> ScorerModel:
    from sp_rerank.scorers.mps import from_original

    # The authors published the module itself, not its tensors.
    state = read_tensors(file, of_module=True)
    return from_original(state, name=row.name, source=source, license=row.license)


def _vocabulary(file: Path, row: Published) -> list[str]:
    """BERT's WordPiece vocabulary, a token a line, with the two tokens that BLIP appends."""
    beside = _vocabulary_file(file, row)
    try:
        # `splitlines` would part a line at characters that are tokens themselves.
        return [*beside.read_text(encoding="utf-8").rstrip("\n").split("\n"), *_ADDED_TOKENS]
    except (OSError, ValueError) as error:
        raise StorageError(f"{beside} cannot be read: {error}; fetch it again") from error


def _vocabulary_file(file: Path, row: Published) -> Path:
    """The one beside the checkpoint, or the published one."""
    beside = file.with_name(row.vocabulary_file)
    if beside.is_file():
        return beside
    assert row.vocabulary is not None, row.name
    return fetch_file(row.vocabulary[0], [row.vocabulary_file], row.vocabulary[1])[0]


def _aesthetic_of(file: Path, row: Published, source: str) -> ScorerModel:
    from sp_rerank.scorers.aesthetic import AestheticScorer

    head = read_tensors(file)
    clip = DualEncoder.from_pretrained(fetch_and_convert(PUBLISHED["clip-l"]))
    source = f"{source}, on the image tower of {clip.config['source']}"
    return AestheticScorer.from_original(head, clip, name=row.name, source=source, license=row.license)


_BUILDERS: dict[str, Callable[[Path, Published, str], ScorerModel]] = {
    "open_clip": _dual_encoder_of,
    "transformers": _dual_encoder_of,
    "siglip": _siglip_of,
    "image_reward": _blip_of,
    "blip_itm": _blip_of,
    "cycle_reward": _blip_of,
    "mps": _mps_of,
    "aesthetic": _aesthetic_of,
}
