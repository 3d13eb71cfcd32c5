"""A whole model in one safetensors file, as model sites offer it: weights without a configuration.

The configuration is that of a diffusers model of the same kind: a folder, or what is in the cache or can be fetched of
a repository. Knows diffusers' loader of such files. Knows nothing of schedulers or devices.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.config.checkpoint import WEIGHTS
from sp_rerank.diffusion.components import read_index
from sp_rerank.errors import HubUnavailableError, StorageError, UsageError
from sp_rerank.storage import hub

if TYPE_CHECKING:
    import torch

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def is_single_file(spec: str) -> bool:
    """Whether a model's name is that of a file.

    Raises:
        UsageError: If it is one that may hold code.
    """
    if spec.endswith(PICKLES) and Path(spec).is_file():
        raise UsageError(f"{spec} may run code when it is read; expected a file NAME{WEIGHTS}")
    return spec.endswith(WEIGHTS) and Path(spec).is_file()


def find_base(file: str, base: str | None) -> tuple[str, Path]:
    """Name and folder of the configuration of a file's kind.

    Args:
        file: The model.
        base: A folder, or a repository; None takes the one that diffusers knows for this kind of weights.

    Raises:
        UsageError: If the folder is no diffusers model.
        HubUnavailableError: If a repository is neither in the cache nor within reach.
        StorageError: If the file is damaged.
    """
    name = base or _usual_base(file)
    if Path(name).is_dir():
        folder = Path(name)
    else:
        try:
            folder = hub.fetch_configuration(name)
        except HubUnavailableError as error:
            kind = "its base" if base else f"for weights of its kind that of {name}"
            raise HubUnavailableError(
                f"{file} holds weights only, and needs a configuration ({kind}), which is neither here nor in the "
                "cache; give the folder of a diffusers model of the same kind as base"
            ) from error
    if "_class_name" not in read_index(folder):
        raise UsageError(f"base is {name!r}; expected a folder with the model_index.json of a diffusers model")
    return name, folder


def load_single_file(file: str, folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a file, without a safety checker: such files have none.

    Args:
        file: The model.
        folder: Its configuration.
        dtype: Of the weights.

    Raises:
        StorageError: If the file is damaged, or lacks weights that the configuration asks for.
    """
    import diffusers

    kind = read_index(folder)["_class_name"]
    stock: Any = getattr(diffusers, kind if isinstance(kind, str) else "", None)
    if stock is None or not hasattr(stock, "from_single_file"):
        raise UsageError(f"base is a {kind}, which diffusers does not read from one file")
    more = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in read_index(folder) else {}
    pipe = stock.from_single_file(file, config=str(folder), dtype=dtype, local_files_only=True, **more)
    for name, part in pipe.components.items():
        lost = [key for key, weight in getattr(part, "named_parameters", list)() if weight.is_meta]
        if lost:
            raise StorageError(
                f"{file} lacks {len(lost)} weights of the {name}, such as {lost[0]}; expected a whole model of the "
                f"kind of its base {folder}"
            )
    pipe.register_to_config(_name_or_path=file)
    return pipe


def _usual_base(file: str) -> str:
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    from sp_rerank.diffusion.additions import read_weights

    return fetch_diffusers_config(read_weights("model", file))["pretrained_model_name_or_path"]
