"""Where a loaded pipeline computes, and what it says that it was made of. Knows nothing of where models come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_rerank.config import Provenance
from sp_rerank.errors import OptionError, UsageError, first_line

if TYPE_CHECKING:
    import torch

    from sp_rerank.types import TextToImagePipeline

_PROVENANCE = "_sp_rerank_provenance"


def place(pipe: Any, device: str, offload: bool) -> Any:
    """A pipeline on its device, or ready to go there module by module.

    Raises:
        UsageError: If the device does not take it, or there is none to go to.
    """
    if offload and device.split(":")[0] == "cpu":
        raise OptionError("offload", offload, "an accelerator: models wait in main memory, where a CPU has them anyway")
    try:
        if offload:
            pipe.enable_model_cpu_offload(device=device)
        return pipe if offload else pipe.to(device)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"the model cannot be put on {device!r}: {first_line(error)}") from error


def device_of(pipe: TextToImagePipeline) -> torch.device:
    """Where a pipeline computes: not where its modules wait when they are offloaded."""
    return getattr(pipe, "_execution_device", pipe.device)


def set_provenance(pipe: Any, provenance: Provenance) -> None:
    """Let a pipeline say what it was made of; its configuration, which is saved with it, stays as it is."""
    vars(pipe)[_PROVENANCE] = provenance


def provenance_of(pipe: Any) -> Provenance:
    """What a pipeline says that it was made of; of one that was not loaded here nothing is known."""
    return vars(pipe).get(_PROVENANCE, Provenance())
