"""What is in a pipeline's folder: its class, and its networks, each with all of its weights.

diffusers and transformers fill weights that a file lacks with random numbers and say so in a warning; the images are
noise then. Knows the folder's model_index.json; knows nothing of schedulers, tokenizers or of what a pipeline is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.errors import StorageError, UsageError

if TYPE_CHECKING:
    import torch

DROP_IN = "BestOfNPipeline"
"""How the names of the classes of `sp_rerank.pipelines` end, in place of "Pipeline"."""

_VARIANT = re.compile(r"[^.]+\.([^.]+?)(?:-\d+-of-\d+)?\.safetensors")
"""NAME.fp16.safetensors, whole or in shards."""


def load_networks(
    folder: Path, dtype: torch.dtype, *, variant: str | None = None, without: Collection[str] = ()
) -> dict[str, Any]:
    """Load every network that diffusers or transformers can load, from safetensors only.

    Args:
        folder: With a model_index.json.
        dtype: Of the weights.
        variant: Such as "fp16"; a component that has none of it has its plain weights.
        without: Names of components that are left out.

    Returns:
        The networks by the names of their components, to be handed to the pipeline's `from_pretrained`.

    Raises:
        StorageError: Naming the component, if its file lacks some of its weights.
        Exception: Whatever diffusers and transformers raise for a folder that they cannot read.
    """
    classes = [(name, kind) for name, kind in _network_classes(folder) if name not in without]
    return {name: load_network(kind, folder / name, dtype, variant) for name, kind in classes}


def find_variant(folder: Path, asked: str | None, without: Collection[str] = ()) -> str | None:
    """The variant of the weights to read: the one that is asked for; where there are no plain ones, the one there is.

    Raises:
        UsageError: If there is none of the variant that is asked for, or there are several to choose from.
    """
    held = [_variants(folder / name) for name, _ in _network_classes(folder) if name not in without]
    offered = sorted({variant for variants in held for variant in variants if variant})
    if asked:
        if asked not in offered:
            raise UsageError(f"variant is {asked!r}; {folder} has {', '.join(offered) or 'plain weights only'}")
        return asked
    if all(None in variants or not variants for variants in held):
        return None
    if len(offered) > 1:
        raise UsageError(f"{folder} has no plain weights; expected a variant, one of {', '.join(offered)}")
    return offered[0]


def _variants(folder: Path) -> set[str | None]:
    """The variants of a component's weights; None are the plain ones."""
    found = [_VARIANT.fullmatch(file.name) for file in folder.glob("*.safetensors")]
    return {match[1] if match else None for match in found}


def load_network(kind: Any, folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """Load a network of a class of diffusers or transformers from its own folder; errors as in `load_networks`."""
    own = variant if variant in _variants(folder) else None
    network, found = kind.from_pretrained(
        folder, dtype=dtype, variant=own, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise StorageError(
            f"{folder} lacks {len(missing)} of its weights, which would be random: {', '.join(missing[:3])}{more}; "
            "fetch it again"
        )
    return network


def pipeline_class(folder: Path) -> Any:
    """The class whose `from_pretrained` opens a folder: diffusers' generic one, which looks into it.

    A folder that one of our own classes saved names a file of code in it, which is not run: it is the stock pipeline
    with a scorer, and the scorer is left where it lies.
    """
    import diffusers

    stored = read_index(folder).get("_class_name")
    name = str(stored[-1]) if isinstance(stored, list) and stored else ""
    stock: Any = getattr(diffusers, name.removesuffix(DROP_IN) + "Pipeline", None)
    if not name.endswith(DROP_IN) or stock is None:
        return diffusers.DiffusionPipeline

    class Saved(stock):
        @classmethod
        def _dict_from_json_file(cls, json_file: Any, **kwargs: Any) -> dict[str, Any]:
            stored = super()._dict_from_json_file(json_file, **kwargs)
            return {name: value for name, value in stored.items() if name != "scorer"} | {"_class_name": cls.__name__}

    Saved.__name__ = Saved.__qualname__ = stock.__name__
    return Saved


def read_index(folder: Path) -> dict[str, Any]:
    """What model_index.json holds; nothing where there is no such file, of which diffusers says what is wrong."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}


def _network_classes(folder: Path) -> Iterator[tuple[str, Any]]:
    """Names and classes of the components that have weights."""
    from diffusers.models.modeling_utils import ModelMixin
    from transformers import PreTrainedModel

    for name, entry in read_index(folder).items():
        kind = _class_of(entry)
        if isinstance(kind, type) and issubclass(kind, (ModelMixin, PreTrainedModel)):
            yield name, kind


def _class_of(entry: object) -> object:
    """What an entry of model_index.json names, [library, class]; None for a setting, or for a library of others."""
    match entry:
        case [str(library), str(name)]:
            place = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
        case _:
            return None
    try:
        return getattr(import_module(place), name, None)
    except ImportError:
        return None
