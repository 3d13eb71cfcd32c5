"""Loads the pipelines that make the images, by name, path or repository, and knows the settings that fit each of them.

Weights come from safetensors only, and no code is ever downloaded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from sp_rerank.config import CheckpointKeywords, CheckpointOptions, Provenance
from sp_rerank.config.checkpoint import Embedding, Lora
from sp_rerank.diffusion.additions import add_embeddings, add_loras
from sp_rerank.diffusion.call_arguments import default_of, parameters_of
from sp_rerank.diffusion.compiling import compile_networks
from sp_rerank.diffusion.components import find_variant, load_networks, pipeline_class, read_index
from sp_rerank.diffusion.hardware import check_device, check_dtype
from sp_rerank.diffusion.placement import device_of, place, set_provenance
from sp_rerank.diffusion.single_file import find_base, is_single_file, load_single_file
from sp_rerank.errors import OptionError, SpRerankError, StorageError, UsageError, first_line
from sp_rerank.storage import hub
from sp_rerank.storage.atomic import sha256_of

if TYPE_CHECKING:
    import torch

    from sp_rerank.types import TextToImagePipeline


@dataclass(frozen=True, slots=True)
class Model:
    """A model that this project knows: where it is, pinned, and its settings.

    Attributes:
        source: A repository of the hub, or the folder of the embedded model.
        revision: 40 hex digits of the repository's commit; None for the embedded model.
        steps: Number of scheduler steps.
        guidance_scale: Scale of classifier-free guidance.
        cpu_batch: Images made at once on a CPU.
        about: One line for people.
        small_decoder: Repository of an AutoencoderTiny of the same latents, for previews; None takes the model's own.
    """

    source: str
    revision: str | None
    steps: int
    guidance_scale: float
    cpu_batch: int
    about: str
    small_decoder: str | None = None


MINI = str(Path(str(resources.files("sp_rerank"))) / "mini" / "pipeline")
MODELS = {
    "mini": Model(MINI, None, 16, 2.5, 20, "the embedded model: 64x64 emoji scenes, for trying things out"),
    "sd-v1.4": Model(
        "CompVis/stable-diffusion-v1-4",
        "133a221b8aa7292a167afc5127cb63fb5005638b",
        50,
        7.5,
        4,
        "Stable Diffusion v1.4, 512x512",
        "madebyollin/taesd",
    ),
}
ACCELERATOR_BATCH = 16  # doubled by guidance it stays below the 64 latents at which upsampling leaves channels_last
UNKNOWN_CPU_BATCH = 4
UNKNOWN_STEPS = 50
_PLAIN = CheckpointOptions()


def find_device(device: str = "auto") -> str:
    """The device to use: the accelerator where there is one, else the CPU.

    Raises:
        UsageError: if the device asked for is not on this machine.
    """
    check_device(device)
    if device == "cpu":
        return device
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return accelerator.type if accelerator else "cpu"
    if device.split(":")[0] not in ("cpu", accelerator.type if accelerator else None):
        here = f"cpu and {accelerator.type}" if accelerator else "cpu only"
        raise UsageError(f"no device {device!r} on this machine; there is {here}")
    return device


def find_model(spec: str, device: str) -> tuple[str, str | None]:
    """The model that a word stands for, and one line that explains the choice where it was ours to make.

    Args:
        spec: "auto", a name of MODELS, a folder, a safetensors file, or a repository of the hub such as
            "stabilityai/sdxl-turbo".
        device: Decides what "auto" is: Stable Diffusion v1.4 on an accelerator, the embedded model on a CPU.

    Raises:
        UsageError: If it is none of these.
    """
    if spec == "auto":
        if device == "cpu":
            return "mini", "no accelerator here: taking the embedded model mini; name another model to change that"
        return "sd-v1.4", f"taking Stable Diffusion v1.4 on {device}; name another model to change that"
    known = {model.source: name for name, model in MODELS.items()}
    if spec in MODELS or spec in known:
        return known.get(spec, spec), None
    if is_single_file(spec) or (Path(spec) / "model_index.json").is_file() or _is_repository(spec):
        return spec, None
    raise UsageError(
        f"no model {spec!r}: expected one of {', '.join(MODELS)}, a folder with a model_index.json, "
        "a file NAME.safetensors, or a repository like owner/name"
    )


def _is_repository(spec: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if Path(spec).exists() or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        return False
    try:
        validate_repo_id(spec)
    except HFValidationError:
        return False
    return True


def find_dtype(dtype: str, model: str, device: str, asked: CheckpointOptions = _PLAIN) -> torch.dtype:
    """The precision to compute in, where "auto" leaves it to us.

    On an accelerator bfloat16 for a model whose denoiser is a transformer (those overflow in float16), float16 for
    others; on a CPU float32, but bfloat16 for the embedded model where the CPU is fast at it.

    Args:
        dtype: "auto", "float32", "float16" or "bfloat16".
        model: As in `load_pipeline`; a repository is downloaded where it is not in the cache.
        device: Where the model computes.
        asked: Of the model, beside its name.

    Raises:
        UsageError: If there is no such precision.
        HubUnavailableError, StorageError: As in `load_pipeline`.
    """
    check_dtype(dtype)
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    if device.split(":")[0] != "cpu":
        return torch.bfloat16 if _has_transformer(model, asked) else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if model == "mini" and fast else torch.float32


def _has_transformer(spec: str, asked: CheckpointOptions) -> bool:
    """Whether the model's denoiser is a transformer, as its model_index.json names it; False where it names none."""
    if spec in MODELS:
        return False
    folder = find_base(spec, asked.base)[1] if is_single_file(spec) else _folder_of(spec, asked.variant)
    return "transformer" in read_index(folder)


def _folder_of(spec: str, variant: str | None) -> Path:
    """The folder of a model, downloaded first where it is a repository that is not in the cache."""
    model = MODELS.get(spec)
    source, revision = (model.source, model.revision) if model else (spec, None)
    if revision or not Path(source).exists():  # a folder that happens to have a pinned model's name is not that model
        return hub.fetch_pipeline(source, revision, variant)
    return Path(source)


def load_pipeline(
    spec: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    scheduler: str | None = None,
    safety_checker: bool = True,
    compiled: bool = False,
    **checkpoint: Unpack[CheckpointKeywords],
) -> Any:
    """A diffusers text-to-image pipeline, ready on its device, its progress bars off; nothing is printed.

    Args:
        spec: A name of MODELS, a folder, a safetensors file that holds a whole model, or a repository.
        device: Where the weights go.
        dtype: Precision of the weights; float32 where None.
        scheduler: Another scheduler: the class name of one of diffusers, such as "DDIMScheduler" or just "DDIM", or a
            name of AUTOMATIC1111, such as "DPM++ 2M Karras" (`sp_rerank.config.samplers`).
        safety_checker: False leaves a checkpoint's safety checker out.
        compiled: Compile the denoiser and the decoder when they are first called; see `compiling.compile_networks`.
        **checkpoint: The fields of `sp_rerank.config.CheckpointOptions`: base, variant, loras, embeddings, offload.

    Raises:
        UsageError: If the folder is no pipeline, the repository does not exist or asks for a token, the scheduler, a
            LoRA or a textual inversion does not fit, or a package that the model needs is not installed.
        HubUnavailableError: If the repository is not in the cache and the hub cannot be reached.
        StorageError: If the files are damaged, or lack weights.
    """
    import torch

    asked, precision = CheckpointOptions(**checkpoint), torch.float32 if dtype is None else dtype
    try:
        with quiet():
            load = _load_file if is_single_file(spec) else _load_folder
            pipe, made = load(spec, asked, precision, safety_checker)
    except ImportError as error:
        raise UsageError(f"{spec} needs a package that is not installed: {first_line(error)}") from error
    except SpRerankError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors raise a dozen kinds
        raise StorageError(f"the model in {spec} cannot be loaded: {first_line(error)}") from error
    if "prompt" not in parameters_of(pipe):
        raise UsageError(f"{spec} is a {type(pipe).__name__}, not a text-to-image pipeline")
    if scheduler:
        from sp_rerank.diffusion.schedulers import other_scheduler

        pipe.scheduler = other_scheduler(pipe, scheduler)
    pipe.set_progress_bar_config(disable=True)
    with quiet():
        embeddings = add_embeddings(pipe, [Embedding.parse(text) for text in asked.embeddings])
        loras = add_loras(pipe, [Lora.parse(text) for text in asked.loras])
        set_provenance(pipe, replace(made, loras=loras, embeddings=embeddings, offload=asked.offload))
        placed = place(pipe, device, asked.offload)
        if compiled:
            compile_networks(placed, device)
        return placed


def _load_folder(
    spec: str, asked: CheckpointOptions, dtype: torch.dtype, safety_checker: bool
) -> tuple[Any, Provenance]:
    if asked.base:
        raise OptionError("base", asked.base, "none: only a model that is a file needs a configuration")
    folder = _folder_of(spec, asked.variant)
    extra: dict[str, Any] = {} if safety_checker else {"safety_checker": None, "requires_safety_checker": False}
    variant = find_variant(folder, asked.variant, without=extra)
    extra |= load_networks(folder, dtype, variant=variant, without=extra)
    pipe = pipeline_class(folder).from_pretrained(
        folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True, **extra
    )
    return pipe, Provenance(variant=variant)


def _load_file(spec: str, asked: CheckpointOptions, dtype: torch.dtype, _: bool) -> tuple[Any, Provenance]:
    if asked.variant:
        raise OptionError("variant", asked.variant, "none: a model that is a file has one set of weights")
    name, folder = find_base(spec, asked.base)
    return load_single_file(spec, folder, dtype), Provenance(base=name, sha256=sha256_of(Path(spec)))


def open_pipeline(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    scheduler: str | None = None,
    safety_checker: bool = True,
    compiled: bool = False,
    **checkpoint: Unpack[CheckpointKeywords],
) -> tuple[Any, str | None]:
    """The pipeline that words stand for, as on a command line, and a line that explains a choice that was ours.

    Args:
        model: As in `find_model`.
        device: As in `find_device`.
        dtype: As in `find_dtype`.
        scheduler, safety_checker, compiled, **checkpoint: As in `load_pipeline`.

    Raises:
        UsageError, HubUnavailableError, StorageError: As these do.
    """
    found = find_device(device)
    spec, why = find_model(model, found)
    precision = find_dtype(dtype, spec, found, CheckpointOptions(**checkpoint))
    how: dict[str, Any] = {"scheduler": scheduler, "safety_checker": safety_checker, "compiled": compiled, **checkpoint}
    pipe = load_pipeline(spec, device=found, dtype=precision, **how)
    return pipe, why


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what diffusers and transformers print while they load a model; their settings come back afterwards."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    no_downloads = are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        with warnings.catch_warnings(action="ignore"):  # where an environment variable has settled it
            for library, (verbosity, bars) in zip(libraries, before, strict=True):
                library.set_verbosity(verbosity)
                if bars:
                    library.enable_progress_bar()  # of transformers: those of downloads too
            (disable_progress_bars if no_downloads else enable_progress_bars)()


def scheduler_name(pipe: TextToImagePipeline) -> str:
    """What run.json calls a pipeline's scheduler: its class, or A1111's name of a class that is set up in one way."""
    return getattr(pipe.scheduler, "sampler_name", type(pipe.scheduler).__name__)


def model_of(pipe: TextToImagePipeline) -> str:
    """The name under which a loaded pipeline's model is known, else its repository or folder."""
    return origin_of(pipe)[0]


def origin_of(pipe: TextToImagePipeline) -> tuple[str, str | None]:
    """Where a loaded pipeline's model comes from: its name, repository or folder, and the commit of a repository."""
    source = str(getattr(pipe, "name_or_path", "") or pipe.config.get("_name_or_path", "") or "in memory")
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})", source)
    if cached:
        source, revision = cached[1].replace("--", "/"), cached[2]
    else:
        revision = None
    for name, model in MODELS.items():
        if source == model.source and revision == model.revision:
            return name, revision
    return source, revision


def default_settings(pipe: TextToImagePipeline) -> tuple[int, float, int]:
    """Steps, guidance scale and batch size of a pipeline: its model's own, else its class's defaults.

    The guidance scale is 0 where the class has none or leaves it to the model; `Sampler` passes no such 0 on.
    """
    model = MODELS.get(model_of(pipe))
    on_cpu = device_of(pipe).type == "cpu"
    if model:
        return model.steps, model.guidance_scale, model.cpu_batch if on_cpu else ACCELERATOR_BATCH
    takes = parameters_of(type(pipe).__call__)
    steps, guidance = default_of(takes, "num_inference_steps", UNKNOWN_STEPS), default_of(takes, "guidance_scale", 0.0)
    return int(steps), float(guidance), UNKNOWN_CPU_BATCH if on_cpu else ACCELERATOR_BATCH
