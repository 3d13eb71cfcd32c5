"""StableDiffusionBestOfNPipeline: Stable Diffusion, drop-in, that returns the best of N candidates.

Knows Stable Diffusion's call and how a diffusers pipeline is built, saved and loaded; knows nothing of denoising
(the parent's), of batches and memory (`Sampler`) or of what a score is (`Scorer`). The file is self-contained: with
`custom_pipeline=` diffusers copies it elsewhere and runs it there, so imports are absolute, nothing is read from
beside it, and it holds one pipeline class only. That is why it is longer than other files.
"""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from sp_rerank.config import EXHAUSTIVE, STEERING, SearchPlan
from sp_rerank.diffusion.loading import default_settings, model_of
from sp_rerank.diffusion.sampler import Batch, Sampler
from sp_rerank.errors import UsageError

# diffusers looks for the class of a saved scorer among the modules that are imported already.
from sp_rerank.scorers import aesthetic, blip, clip  # noqa: F401
from sp_rerank.scorers.scoring import name_of, score_images
from sp_rerank.search.base import Strategy
from sp_rerank.search.schedule import RunShape, plan_for, strategy_of
from sp_rerank.stats.ranking import order
from sp_rerank.types import Scorer

_AS_IT_IS: Any = object()
"""In place of a precision: every module keeps its own."""

# arguments that the sampler sets itself, from the text and the seeds
_SET_BY_THE_SAMPLER = {
    "prompt",
    "negative_prompt",
    "generator",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "output_type",
}


@dataclass
class BestOfNPipelineOutput(StableDiffusionPipelineOutput):
    """What a call returns, best first, prompt by prompt: Stable Diffusion's own output, then ours.

    Attributes:
        images: n PIL images, or (n, H, W, 3) float in [0, 1], or (n, 3, H, W) float in [0, 1], as `output_type` asks.
        nsfw_content_detected: which of them the safety checker replaced by black; all False where there is none.
        scores: in the scorer's own scale; higher is better; comparable within one prompt only. NaN where an image is
            not usable (replaced, or not finite) and where nothing was compared (`num_candidates=1`).
        seeds: of the initial noise; None where an image did not have a generator of its own.
        indices: 0..num_candidates-1, the place among the candidates of its prompt.
    """

    scores: list[float]
    seeds: list[int | None]
    indices: list[int]


@dataclass(frozen=True, slots=True)
class _Finished:
    """A candidate with its score, NaN where it is not usable, and its pixels, (3, H, W) in [0, 1]."""

    score: float
    index: int
    seed: int
    flagged: bool
    pixels: torch.Tensor


class StableDiffusionBestOfNPipeline(StableDiffusionPipeline):
    """Stable Diffusion that makes `num_candidates` images for a prompt, scores them, and returns the best.

    It is `StableDiffusionPipeline` in every respect, bit for bit, until `num_candidates` is above 1.

    Args:
        vae: as in StableDiffusionPipeline.
        text_encoder: as in StableDiffusionPipeline.
        tokenizer: as in StableDiffusionPipeline.
        unet: as in StableDiffusionPipeline.
        scheduler: as in StableDiffusionPipeline.
        safety_checker: as in StableDiffusionPipeline.
        feature_extractor: as in StableDiffusionPipeline.
        image_encoder: as in StableDiffusionPipeline.
        requires_safety_checker: as in StableDiffusionPipeline.
        scorer: what ranks the candidates. A diffusers or transformers model, such as those of `load_scorer`, is moved
            and cast by `to`, offloaded, saved and loaded with the pipeline; any other Scorer is only called.

    Raises:
        UsageError: if the scorer is a torch module that does not tell its device.

    Example:
        >>> from sp_rerank.scorers import load_scorer
        >>> pipe = StableDiffusionBestOfNPipeline.from_pipe(existing_pipe, scorer=load_scorer("clip-mini"))
        >>> out = pipe("a lemon wearing sunglasses on the beach", num_candidates=100, top_k=4, seed=0)
        >>> out.images[0].save("best.png"); print(out.seeds[0], out.scores[0])
    """

    model_cpu_offload_seq = f"{StableDiffusionPipeline.model_cpu_offload_seq}->scorer"
    _optional_components = [*StableDiffusionPipeline._optional_components, "scorer"]  # noqa: RUF012

    # from_pipe takes over only the modules whose class is named by the type hints here.
    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None,
        feature_extractor: CLIPImageProcessor | None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
        scorer: Scorer | None = None,
    ):
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,  # pyright: ignore[reportArgumentType]
            feature_extractor=feature_extractor,  # pyright: ignore[reportArgumentType]
            image_encoder=image_encoder,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=requires_safety_checker,
        )
        if isinstance(scorer, torch.nn.Module) and not hasattr(scorer, "device"):
            raise UsageError(
                "scorer: diffusers asks a torch module for its device and dtype, and this one has none; expected a "
                "diffusers or transformers model, or an object that is no module and holds one"
            )
        self.register_modules(scorer=scorer)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        *,
        num_candidates: int = 1,
        top_k: int | None = None,
        seed: int | None = None,
        return_all: bool = False,
        candidate_batch_size: int | None = None,
        search: str | PathLike = EXHAUSTIVE,
        **kwargs: Any,
    ) -> BestOfNPipelineOutput | tuple[Any, ...]:
        """Make candidates for each prompt and return the best of them.

        Arguments not listed here are Stable Diffusion's own, with its meanings and defaults. A callback is called at
        each step of each batch; one that sets `pipe._interrupt` ends the search with the batch in hand.

        Args:
            prompt: one or several; each has its own candidates, from the same seeds. The scorer reads it too.
            negative_prompt: one for all prompts, or one a prompt.
            num_images_per_prompt: how many images are returned for each prompt.
            generator: where num_candidates > 1, only its initial seed is read: candidate i has the noise of
                `initial_seed() + i`. A list of `num_candidates` generators gives each candidate its seed.
            num_candidates: how many images are made for each prompt. With 1 nothing is scored.
            top_k: another word for num_images_per_prompt, which it replaces.
            seed: candidate i has the noise of a CPU generator of seed + i, whatever the batch size and the device.
                Without it and a generator, a seed is drawn from torch's global generator.
            return_all: return every candidate, best first. All of them are held in memory then; otherwise no more
                than a batch and the best.
            candidate_batch_size: how many are made at once, by default as many as suit the model and device. The same
                batches give the same bits; other batches the same noise, but last digits may differ.
            search: how the steps are spent: "exhaustive" finishes every candidate, "fast" only those whose drafts look
                best; or a schedule file of `sp-rerank plan`.
            **kwargs: Stable Diffusion's deprecated arguments.

        Returns:
            The output, or with `return_dict=False` a tuple of its fields in their order. Where fewer candidates are
            usable than asked for, those that the safety checker replaced or that are not finite fill the last places.

        Raises:
            UsageError: (a ValueError) if the arguments contradict each other, there is nothing to choose with, or a
                callback interrupts before a candidate is finished.
            TryAgainError: if memory does not suffice for a single image.
        """
        chosen = _count_returned(num_candidates, num_images_per_prompt, top_k, return_all)
        if seed is not None and generator is not None:
            raise UsageError("seed and generator: expected one of them, got both")
        arguments: dict[str, Any] = {
            "prompt": prompt,
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "timesteps": timesteps,
            "sigmas": sigmas,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "eta": eta,
            "generator": generator,
            "latents": latents,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "ip_adapter_image": ip_adapter_image,
            "ip_adapter_image_embeds": ip_adapter_image_embeds,
            "output_type": output_type,
            "cross_attention_kwargs": cross_attention_kwargs,
            "guidance_rescale": guidance_rescale,
            "clip_skip": clip_skip,
            "callback_on_step_end": callback_on_step_end,
            "callback_on_step_end_tensor_inputs": callback_on_step_end_tensor_inputs,
            **kwargs,
        }
        if num_candidates == 1:
            output = self._one_candidate(arguments, chosen, seed)
        else:
            self._check_search(arguments, num_candidates)
            strategy = self._strategy(search, arguments, num_candidates, chosen)
            seeds = _candidate_seeds(seed, generator, num_candidates)
            output = self._best_of(arguments, chosen, seeds, _batch_size(candidate_batch_size, self), strategy)
        return output if return_dict else output.to_tuple()

    def _one_candidate(self, arguments: dict[str, Any], per_prompt: int, seed: int | None) -> BestOfNPipelineOutput:
        """Stable Diffusion's own call; `per_prompt` images for each prompt."""
        if seed is not None:
            prompts = _count_prompts(arguments["prompt"], arguments["prompt_embeds"])
            arguments["generator"] = [_generator(seed + i) for _ in range(prompts) for i in range(per_prompt)]
        output: Any = super().__call__(**arguments, num_images_per_prompt=per_prompt, return_dict=True)
        count = len(output.images)
        generator = arguments["generator"]
        generators = generator if isinstance(generator, list) else [generator]
        seeds = [None if each is None else each.initial_seed() for each in generators]
        return BestOfNPipelineOutput(
            images=output.images,
            nsfw_content_detected=list(output.nsfw_content_detected or [False] * count),
            scores=[math.nan] * count,
            seeds=seeds if len(seeds) == count else [None] * count,
            indices=[i % per_prompt for i in range(count)],
        )

    def _check_search(self, arguments: dict[str, Any], num_candidates: int) -> None:
        """Refuse what one candidate allows and several do not."""
        if self.scorer is None:
            raise UsageError(
                f"num_candidates={num_candidates} needs a scorer to choose with, and the pipeline has none; "
                'pass one: StableDiffusionBestOfNPipeline.from_pipe(pipe, scorer=load_scorer("clip-mini"))'
            )
        for name in ("latents", "prompt_embeds", "negative_prompt_embeds"):
            if arguments[name] is not None:
                raise UsageError(
                    f"{name}: expected None with num_candidates={num_candidates}, because the scorer reads the "
                    "prompt's text and the noise comes from the seeds"
                )
        if not arguments["prompt"]:
            raise UsageError(f"prompt: expected text with num_candidates={num_candidates}, because the scorer reads it")
        if arguments["output_type"] == "latent":
            raise UsageError(
                f"output_type: expected 'pil', 'np' or 'pt' with num_candidates={num_candidates}, got 'latent', "
                "which cannot be scored"
            )

    def _strategy(
        self, search: str | PathLike, arguments: dict[str, Any], num_candidates: int, chosen: int
    ) -> Strategy:
        """How the candidates of a prompt are found."""
        if search == EXHAUSTIVE:
            return strategy_of(SearchPlan())
        for name in ("timesteps", "sigmas"):
            if arguments[name] is not None:
                raise UsageError(f"{name}: expected None with search={str(search)!r}, because drafts take other steps")
        if chosen == num_candidates:
            raise UsageError(
                f"search={str(search)!r}: expected fewer images returned than num_candidates={num_candidates}, because "
                f"a search does not finish all of them; use search={EXHAUSTIVE!r}"
            )
        steps, model = arguments["num_inference_steps"], model_of(self)
        if search == STEERING:
            raise UsageError(f"search={STEERING!r}: its images have no seed of their own; use sp_rerank.generate")
        plan = plan_for(
            search if isinstance(search, str) else Path(search),
            RunShape(num_candidates, chosen, steps, model, name_of(self.scorer)),
        )
        if arguments["callback_on_step_end"] is not None and plan.watches:
            raise UsageError(
                f"callback_on_step_end: expected None with search={str(search)!r}, which takes that place itself"
            )
        return strategy_of(plan)

    def _best_of(
        self, arguments: dict[str, Any], chosen: int, seeds: list[int], batch_size: int, strategy: Strategy
    ) -> BestOfNPipelineOutput:
        """Search for each prompt in turn, and convert what was found."""
        prompts = [arguments["prompt"]] if isinstance(arguments["prompt"], str) else arguments["prompt"]
        negatives = _one_each(arguments["negative_prompt"], prompts)
        passed = {name: value for name, value in arguments.items() if name not in _SET_BY_THE_SAMPLER}
        found: list[_Finished] = []
        for prompt, negative in zip(prompts, negatives, strict=True):
            sampler = Sampler(
                self, prompt, batch_size=batch_size, negative_prompt=negative, call=super().__call__, **passed
            )
            found += self._search(sampler, prompt, seeds, chosen, strategy)
            if self.interrupt:
                break
        self.maybe_free_model_hooks()
        if not found:
            raise UsageError("interrupted while drafts were made, before a candidate was finished; nothing to return")
        images: Any = self.image_processor.postprocess(
            torch.stack([candidate.pixels for candidate in found]),
            output_type=arguments["output_type"] or "pil",
            do_denormalize=[False] * len(found),  # they are in [0, 1] already
        )
        return BestOfNPipelineOutput(
            images=images,
            nsfw_content_detected=[candidate.flagged for candidate in found],
            scores=[candidate.score for candidate in found],
            seeds=[candidate.seed for candidate in found],
            indices=[candidate.index for candidate in found],
        )

    def _search(
        self, sampler: Sampler, prompt: str, seeds: list[int], chosen: int, strategy: Strategy
    ) -> list[_Finished]:
        """The best `chosen` candidates of one prompt, best first; of the others no more than a batch is held."""
        best: list[_Finished] = []

        def score(images: torch.Tensor) -> torch.Tensor:
            return torch.tensor(score_images(self.scorer, prompt, images))

        with closing(strategy(sampler, score, dict(enumerate(seeds)), top_k=chosen, prior={})) as seen:
            for scored in seen:
                if scored.stage is None:
                    pool = best + _finished(scored.batch, scored.scores)
                    best = [pool[i] for i in order([candidate.score for candidate in pool])[:chosen]]
                if self.interrupt:
                    break
        return best

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """A pipeline around the modules of another one, which costs no memory.

        Unlike in diffusers, where all of it becomes float32, each module and the scorer keep their precision, which
        they share with the other pipeline.

        Args:
            pipeline: any pipeline with Stable Diffusion's components.
            **kwargs: `scorer`, by default the other pipeline's where it has one; components to replace; `dtype`, to
                which all modules are converted, those of the other pipeline too.
        """
        kwargs.setdefault("scorer", getattr(pipeline, "scorer", None))
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            kwargs["dtype"] = _AS_IT_IS
        return super().from_pipe(pipeline, **kwargs)  # pyright: ignore[reportReturnType]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers; the last step of `from_pipe` is one to a precision, which may be each module's own."""
        if kwargs.get("dtype") is _AS_IT_IS:
            return self
        return super().to(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, **kwargs: Any) -> Self:
        """As in diffusers, but in float32 throughout where no precision is asked for.

        transformers 5 would load a text encoder in the precision in which it is stored, beside a UNet in float32.
        """
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            kwargs["dtype"] = torch.float32
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # pyright: ignore[reportReturnType]

    @property
    def components(self) -> dict[str, Any]:
        """As in diffusers; without the scorer where there is none, so that they make a Stable Diffusion too."""
        found = super().components
        if found.get("scorer") is None:
            found.pop("scorer", None)
        return found

    def save_config(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json, and this file beside it, so that plain `DiffusionPipeline.from_pretrained` finds it.

        Part of `save_pretrained`. Reading the folder so needs `trust_remote_code=True`; reading it with
        `StableDiffusionBestOfNPipeline.from_pretrained` runs no code of the folder and does not.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        index = Path(save_directory) / self.config_name
        written = json.loads(index.read_text(encoding="utf-8"))
        written.pop("_name_or_path", None)  # a path of this machine
        written["_class_name"] = ["pipeline", StableDiffusionBestOfNPipeline.__name__]
        index.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        shutil.copyfile(__file__, Path(save_directory) / "pipeline.py")

    # Private to diffusers, but the only step through which both a folder and a repository pass.
    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike, **kwargs: Any) -> dict[str, Any]:
        """A configuration without the name of a file of code: this class is loaded already and needs none."""
        stored = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(stored.get("_class_name"), list):
            stored["_class_name"] = stored["_class_name"][-1]
        return stored


def _count_returned(num_candidates: int, num_images_per_prompt: int | None, top_k: int | None, return_all: bool) -> int:
    """How many images a prompt gets; with one candidate as many as Stable Diffusion would make."""
    if num_candidates < 1:
        raise UsageError(f"num_candidates: expected at least 1, got {num_candidates}")
    wanted = num_images_per_prompt or 1
    if return_all and top_k is not None:
        raise UsageError(f"return_all and top_k={top_k}: expected one of them, got both")
    if top_k is not None and wanted not in (1, top_k):
        raise UsageError(f"top_k={top_k} and num_images_per_prompt={wanted}: expected one of them, got both")
    if num_candidates == 1 and top_k in (None, 1):
        return wanted
    returned = num_candidates if return_all else top_k if top_k is not None else wanted
    if not 1 <= returned <= num_candidates:
        raise UsageError(f"expected to return 1 to num_candidates={num_candidates} images, got {returned}")
    return returned


def _batch_size(asked: int | None, pipe: StableDiffusionBestOfNPipeline) -> int:
    if asked is not None and asked < 1:
        raise UsageError(f"candidate_batch_size: expected at least 1, got {asked}")
    return asked or default_settings(pipe)[2]


def _count_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
    if isinstance(prompt, list):
        return len(prompt)
    return 1 if prompt_embeds is None else len(prompt_embeds)


def _one_each(negative_prompt: str | list[str] | None, prompts: list[str]) -> list[str | None]:
    """The negative prompt of each prompt."""
    if not isinstance(negative_prompt, list):
        return [negative_prompt] * len(prompts)
    if len(negative_prompt) != len(prompts):
        raise UsageError(
            f"negative_prompt: expected one, or one a prompt: got {len(negative_prompt)} for {len(prompts)} prompts"
        )
    return list(negative_prompt)


def _generator(seed: int) -> torch.Generator:
    """On the CPU, so that the noise does not depend on the device."""
    return torch.Generator("cpu").manual_seed(seed)


def _candidate_seeds(
    seed: int | None, generator: torch.Generator | list[torch.Generator] | None, count: int
) -> list[int]:
    """The seed of each candidate, so that any of them can be made again alone."""
    seeds = _asked_seeds(seed, generator, count)
    beyond = [seed for seed in seeds if not 0 <= seed < 2**64]
    if beyond:
        raise UsageError(
            f"seed or generator: expected seeds from 0 to 2**64 - 1 for {count} candidates, got {beyond[0]}; "
            "a generator of a negative seed counts from 2**64 down"
        )
    return seeds


def _asked_seeds(seed: int | None, generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[int]:
    if isinstance(generator, list):
        if len(generator) != count:
            raise UsageError(f"expected a generator for each of {count} candidates, got a list of {len(generator)}")
        return [each.initial_seed() for each in generator]
    if generator is not None:
        seed = generator.initial_seed()
    if seed is None:
        # from torch's own generator, so that torch.manual_seed makes the call repeatable as it does elsewhere
        seed = int(torch.randint(2**31, (1,)))
    return list(range(seed, seed + count))


def _finished(batch: Batch, scores: torch.Tensor) -> list[_Finished]:
    """The candidates of a batch. Their pixels are copied: a view would hold on to the whole batch."""
    finite = batch.images.isfinite().flatten(start_dim=1).all(dim=1).tolist()
    return [
        _Finished(score if usable and not flagged else math.nan, index, seed, flagged, pixels.clone())
        for score, usable, flagged, index, seed, pixels in zip(
            scores.tolist(), finite, batch.flagged, batch.indices, batch.seeds, batch.images, strict=True
        )
    ]
