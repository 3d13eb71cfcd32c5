"""BestOfNMixin: what makes a stock pipeline of diffusers one that returns the best of N candidates.

    class FluxBestOfNPipeline(BestOfNMixin, FluxPipeline): ...

is all that a family takes. Knows how a diffusers pipeline is called, built, saved and loaded; knows nothing of
denoising (the stock class's), of batches and memory (`Sampler`), of what a score is (`Scorer`) or of single families.
"""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import DiffusionPipeline

from sp_rerank.config import EXHAUSTIVE, STEERING, SearchPlan
from sp_rerank.diffusion.batches import flags_of
from sp_rerank.diffusion.call_arguments import default_of, parameters_of
from sp_rerank.diffusion.loading import UNKNOWN_STEPS, default_settings, model_of
from sp_rerank.diffusion.placement import provenance_of, set_provenance
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.diffusion.spacing import takes_time_steps
from sp_rerank.errors import UsageError
from sp_rerank.pipelines.output import BestOfNPipelineOutput, Finished, finished, output_of
from sp_rerank.pipelines.request import (
    Subject,
    candidate_seeds,
    check_one_of,
    check_searchable,
    count_prompts,
    count_returned,
    seeded,
    subjects_of,
)
from sp_rerank.pipelines.signature import with_signature

# diffusers looks for the class of a saved scorer among the modules that are imported already.
from sp_rerank.scorers import aesthetic, blip, clip  # noqa: F401
from sp_rerank.scorers.scoring import name_of, score_images
from sp_rerank.search.base import Strategy
from sp_rerank.search.schedule import RunShape, plan_for, strategy_of
from sp_rerank.stats.ranking import order
from sp_rerank.types import Scorer

Base: Any = DiffusionPipeline if TYPE_CHECKING else object

_AS_IT_IS: Any = object()
"""In place of a precision: every module keeps its own."""

_OF_THE_SAMPLER = ("generator", "output_type", "latents")
"""Arguments that the sampler sets itself, from the seeds."""

_SAVED = '''"""{name}, saved by sp-rerank; it needs that package."""

from {module} import {name}

__all__ = ["{name}"]
'''
"""The pipeline.py of a saved folder."""


class BestOfNMixin(Base):
    """Makes `num_candidates` images for a prompt, scores them, and returns the best.

    Stands before a stock text-to-image pipeline among the bases of a class. That class is the stock one in every
    respect, bit for bit, until `num_candidates` is above 1; its output is a `BestOfNPipelineOutput`.

    Args:
        *args: As in the stock class.
        scorer: What ranks the candidates. A diffusers or transformers model, such as those of `load_scorer`, is moved
            and cast by `to`, offloaded, saved and loaded with the pipeline; any other Scorer is only called.
        **components: As in the stock class.

    Raises:
        UsageError: If the scorer is a torch module that does not tell its device.
    """

    scorer: Any  # a Scorer, or None

    def __init_subclass__(cls, **more: Any) -> None:
        """Give a class the signatures of its stock class, from which diffusers reads components and arguments."""
        super().__init_subclass__(**more)
        if BestOfNMixin not in cls.__bases__:
            return
        stock: Any = cls.__mro__[cls.__mro__.index(BestOfNMixin) + 1]
        components = [
            inspect.Parameter("scorer", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Scorer | None)
        ]
        arguments = [entry for entry in parameters_of(BestOfNMixin.__call__).values() if entry.name in _OURS]
        namespace: Any = cls
        namespace.__init__ = with_signature(BestOfNMixin.__init__, stock.__init__, components)
        namespace.__call__ = with_signature(BestOfNMixin.__call__, stock.__call__, arguments)
        if stock.model_cpu_offload_seq:
            cls.model_cpu_offload_seq = f"{stock.model_cpu_offload_seq}->scorer"
        cls._optional_components = [*stock._optional_components, "scorer"]

    def __init__(self, *args: Any, scorer: Scorer | None = None, **components: Any) -> None:
        super().__init__(*args, **components)
        if isinstance(scorer, torch.nn.Module) and not hasattr(scorer, "device"):
            raise UsageError(
                "scorer: diffusers asks a torch module for its device and dtype, and this one has none; expected a "
                "diffusers or transformers model, or an object that is no module and holds one"
            )
        self.register_modules(scorer=scorer)

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        num_candidates: int = 1,
        top_k: int | None = None,
        seed: int | None = None,
        return_all: bool = False,
        candidate_batch_size: int | None = None,
        search: str | PathLike = EXHAUSTIVE,
        score_prompt: str | list[str] | None = None,
        **arguments: Any,
    ) -> BestOfNPipelineOutput | tuple[Any, ...]:
        """Make candidates for each prompt and return the best of them.

        Arguments not listed here are the stock class's own, with its meanings and defaults. With several prompts each
        has its own candidates, from the same seeds, and what is given for each prompt is given to its search. A
        callback is called at each step of each batch; one that sets `pipe._interrupt` ends the search with the batch
        in hand.

        Args:
            *args: Of the stock class, in its order.
            num_candidates: how many images are made for each prompt. With 1 nothing is scored.
            top_k: how many images are returned for each prompt: another word for num_images_per_prompt.
            seed: candidate i has the noise of a CPU generator of seed + i, whatever the batch size and the device.
                Without it, `generator` is read: of one generator only its initial seed, which is then candidate 0's;
                a list of `num_candidates` generators gives each candidate its seed. Without both, a seed is drawn from
                torch's global generator.
            return_all: return every candidate, best first. All of them are held in memory then; otherwise no more
                than a batch and the best.
            candidate_batch_size: how many are made at once, by default as many as suit the model and device. The same
                batches give the same bits; other batches the same noise, but last digits may differ.
            search: how the steps are spent: "exhaustive" finishes every candidate, "fast" only those whose drafts look
                best; or a schedule file of `sp-rerank plan`.
            score_prompt: what the scorer reads instead of the prompt: one text, or one a prompt. Needed beside
                `prompt_embeds` (prompt weighting), which have no text.
            **arguments: Of the stock class.

        Returns:
            The output, or with `return_dict=False` a tuple of its fields in their order. Where fewer candidates are
            usable than asked for, those that the safety checker replaced or that are not finite fill the last places.

        Raises:
            UsageError: (a ValueError) if the arguments contradict each other, there is nothing to choose with, or a
                callback interrupts before a candidate is finished.
            TryAgainError: if memory does not suffice for a single image.
        """
        given = self._given(args, arguments)
        as_object, generator = given.pop("return_dict", True), given.get("generator")
        chosen = count_returned(num_candidates, given.pop("num_images_per_prompt", 1), top_k, return_all)
        check_one_of(seed, generator)
        if num_candidates == 1:
            output = self._one_candidate(given, chosen, seed)
        else:
            check_searchable(self, given, num_candidates)
            subjects = subjects_of(given, score_prompt, num_candidates)
            strategy = self._strategy(search, given, num_candidates, chosen)
            seeds = candidate_seeds(seed, generator, num_candidates)
            batch_size = self._batch_size(candidate_batch_size)
            found = self._best_of(subjects, chosen, seeds, batch_size, strategy)
            output = output_of(found, given.get("output_type", "pil"))
        return output if as_object else output.to_tuple()

    def _given(self, args: tuple[Any, ...], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The stock class's arguments that a call gives, by name."""
        parent: Any = super()
        bound = inspect.signature(parent.__call__).bind(*args, **arguments)
        given = dict(bound.arguments)
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        return given

    def _one_candidate(self, arguments: dict[str, Any], per_prompt: int, seed: int | None) -> BestOfNPipelineOutput:
        """The stock class's own call; `per_prompt` images for each prompt."""
        if seed is not None:
            arguments["generator"] = [
                seeded(seed + i) for _ in range(count_prompts(arguments)) for i in range(per_prompt)
            ]
        parent: Any = super()
        output: Any = parent.__call__(**arguments, num_images_per_prompt=per_prompt, return_dict=True)
        count = len(output.images)
        generator = arguments.get("generator")
        generators = generator if isinstance(generator, list) else [generator]
        seeds = [None if each is None else each.initial_seed() for each in generators]
        return BestOfNPipelineOutput(
            images=output.images,
            nsfw_content_detected=list(flags_of(output, count)),
            scores=[math.nan] * count,
            seeds=seeds if len(seeds) == count else [None] * count,
            indices=[i % per_prompt for i in range(count)],
        )

    def _batch_size(self, asked: int | None) -> int:
        if asked is not None and asked < 1:
            raise UsageError(f"candidate_batch_size: expected at least 1, got {asked}")
        return asked or default_settings(self)[2]

    def _strategy(
        self, search: str | PathLike, arguments: dict[str, Any], num_candidates: int, chosen: int
    ) -> Strategy:
        """How the candidates of a prompt are found."""
        if search == EXHAUSTIVE:
            return strategy_of(SearchPlan())
        for name in ("timesteps", "sigmas"):
            if arguments.get(name) is not None:
                raise UsageError(f"{name}: expected None with search={str(search)!r}, because drafts take other steps")
        if chosen == num_candidates:
            raise UsageError(
                f"search={str(search)!r}: expected fewer images returned than num_candidates={num_candidates}, because "
                f"a search does not finish all of them; use search={EXHAUSTIVE!r}"
            )
        if search == STEERING:
            raise UsageError(f"search={STEERING!r}: its images have no seed of their own; use sp_rerank.generate")
        takes = parameters_of(type(self).__call__)
        default = default_of(takes, "num_inference_steps", UNKNOWN_STEPS)
        steps = arguments.get("num_inference_steps", int(default))
        plan = plan_for(
            search if isinstance(search, str) else Path(search),
            RunShape(
                num_candidates, chosen, steps, model_of(self), name_of(self.scorer), takes_time_steps(self, takes)
            ),
        )
        if arguments.get("callback_on_step_end") is not None and plan.watches:
            raise UsageError(
                f"callback_on_step_end: expected None with search={str(search)!r}, which takes that place itself"
            )
        return strategy_of(plan)

    def _best_of(
        self, subjects: Sequence[Subject], chosen: int, seeds: list[int], batch_size: int, strategy: Strategy
    ) -> list[Finished]:
        """The best candidates of each prompt, which are searched in turn."""
        parent: Any = super()
        found: list[Finished] = []
        for subject in subjects:
            passed = {name: value for name, value in subject.arguments.items() if name not in _OF_THE_SAMPLER}
            sampler = Sampler(
                self, subject.prompt or "", batch_size=batch_size, negative_prompt=subject.negative_prompt,
                embeddings=subject.embeddings, call=parent.__call__, **passed,
            )  # fmt: skip
            found += self._search(sampler, subject.text, seeds, chosen, strategy)
            if getattr(self, "interrupt", False):
                break
        self.maybe_free_model_hooks()
        if not found:
            raise UsageError("interrupted while drafts were made, before a candidate was finished; nothing to return")
        return found

    def _search(self, sampler: Sampler, text: str, seeds: list[int], chosen: int, strategy: Strategy) -> list[Finished]:
        """The best `chosen` candidates of one prompt, best first; of the others no more than a batch is held."""
        best: list[Finished] = []

        def score(images: torch.Tensor) -> torch.Tensor:
            return torch.tensor(score_images(self.scorer, text, images))

        with closing(strategy(sampler, score, dict(enumerate(seeds)), top_k=chosen, prior={})) as seen:
            for scored in seen:
                if scored.stage is None:
                    pool = best + finished(scored.batch, scored.scores)
                    best = [pool[i] for i in order([candidate.score for candidate in pool])[:chosen]]
                if getattr(self, "interrupt", False):
                    break
        return best

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """A pipeline around the modules of another one, which costs no memory.

        Unlike in diffusers, where all of it becomes float32, each module and the scorer keep their precision, which
        they share with the other pipeline.

        Args:
            pipeline: any pipeline with the components of this class.
            **kwargs: `scorer`, by default the other pipeline's where it has one; components to replace; `dtype`, to
                which all modules are converted, those of the other pipeline too.
        """
        # given by hand they are taken whatever their class: diffusers would drop a small decoder
        names = [name for name in parameters_of(cls.__init__) if name not in ("self", "scorer")]
        shared = {name: part for name, part in pipeline.components.items() if name in names}
        # settings that a pipeline keeps as attributes only, such as the layers of PAG
        kept = {name: vars(pipeline)[name] for name in names if name in vars(pipeline) and name not in pipeline.config}
        kwargs = {"scorer": getattr(pipeline, "scorer", None), **kept, **shared, **kwargs}
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            kwargs["dtype"] = _AS_IT_IS
        pipe = super().from_pipe(pipeline, **kwargs)
        set_provenance(pipe, provenance_of(pipeline))
        return pipe

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers; the last step of `from_pipe` is one to a precision, which may be each module's own."""
        if kwargs.get("dtype") is _AS_IT_IS:
            return self
        return super().to(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, **kwargs: Any) -> Self:
        """As in diffusers, but in float32 throughout where no precision is asked for.

        transformers 5 would load a text encoder in the precision in which it is stored, beside a denoiser in float32.
        """
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            kwargs["dtype"] = torch.float32
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def components(self) -> dict[str, Any]:
        """As in diffusers; without the scorer where there is none, so that they make the stock pipeline too."""
        found = super().components
        if found.get("scorer") is None:
            found.pop("scorer", None)
        return found

    def save_config(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json, and beside it the file by which plain `DiffusionPipeline.from_pretrained` finds it.

        Part of `save_pretrained`. Reading the folder so needs `trust_remote_code=True` and this package; reading it
        with the class's own `from_pretrained` runs no code of the folder and does not.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        index, name = Path(save_directory) / self.config_name, type(self).__name__
        written = json.loads(index.read_text(encoding="utf-8"))
        written.pop("_name_or_path", None)  # a path of this machine
        written["_class_name"] = ["pipeline", name]
        index.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        module = type(self).__module__
        module = "sp_rerank.pipelines" if module.startswith("diffusers_modules.") else module  # a copy of ours
        (Path(save_directory) / "pipeline.py").write_text(_SAVED.format(name=name, module=module), encoding="utf-8")

    # Private to diffusers, but the only step through which both a folder and a repository pass.
    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike, **kwargs: Any) -> dict[str, Any]:
        """A configuration without the name of a file of code: this class is loaded already and needs none."""
        stored = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(stored.get("_class_name"), list):
            stored["_class_name"] = stored["_class_name"][-1]
        return stored


_OURS = [entry.name for entry in parameters_of(BestOfNMixin.__call__).values() if entry.kind is entry.KEYWORD_ONLY]
