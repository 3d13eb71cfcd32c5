"""What a call of a pipeline that chooses asks for: how many images, of which seeds, of which texts; or why it cannot.

Knows the arguments of diffusers' text-to-image pipelines by their names. Knows nothing of images, scores or searches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sp_rerank.errors import UsageError

OF_A_PROMPT = re.compile(r"(negative_)?((pooled_)?prompt(_\d|_(embeds|attention_mask)\w*)?|attention_mask)")
"""Arguments that hold something for each prompt: texts, embeddings and their masks."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the candidates of one search show.

    Attributes:
        text: What the scorer reads.
        prompt: What the pipeline reads; None where it gets embeddings.
        negative_prompt: What the images should not show; None where there is none, or the pipeline gets embeddings.
        embeddings: The pipeline's arguments that hold something for each prompt, a row each; empty for a text.
        arguments: Its other arguments.
    """

    text: str
    prompt: str | None
    negative_prompt: str | None
    embeddings: Mapping[str, Any]
    arguments: Mapping[str, Any]


def check_one_of(seed: int | None, generator: object) -> None:
    """Refuse two sources of noise."""
    if seed is not None and generator is not None:
        raise UsageError("seed and generator: expected one of them, got both")


def count_returned(num_candidates: int, num_images_per_prompt: int | None, top_k: int | None, return_all: bool) -> int:
    """How many images a prompt gets; with one candidate as many as the stock pipeline would make.

    Raises:
        UsageError: If the arguments contradict each other.
    """
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


def count_prompts(arguments: Mapping[str, Any]) -> int:
    """How many prompts a call has; 1 where it has none, of which the pipeline says what is wrong."""
    prompt, embeddings = arguments.get("prompt"), arguments.get("prompt_embeds")
    if isinstance(prompt, list | tuple):
        return len(prompt)
    return len(embeddings) if embeddings is not None and prompt is None else 1


def subjects_of(
    arguments: Mapping[str, Any], score_prompt: str | Sequence[str] | None, num_candidates: int
) -> list[Subject]:
    """What each prompt of a call asks for.

    Args:
        arguments: Of the stock pipeline.
        score_prompt: What the scorer reads instead of the prompts: one text, or one a prompt.
        num_candidates: For the messages.

    Raises:
        UsageError: If the scorer has nothing to read, or there are not as many texts or rows as prompts.
    """
    embedded = arguments.get("prompt_embeds") is not None
    texts = arguments.get("prompt") if score_prompt is None else score_prompt
    if embedded and score_prompt is None:
        raise UsageError(
            f"prompt_embeds: expected score_prompt beside them with num_candidates={num_candidates}, the text that "
            "the scorer reads"
        )
    if not texts or not (embedded or arguments.get("prompt")):
        raise UsageError(f"prompt: expected text with num_candidates={num_candidates}, because the scorer reads it")
    count = count_prompts(arguments)
    read = _one_each("score_prompt", texts, count)
    held = {name: value for name, value in arguments.items() if OF_A_PROMPT.fullmatch(name)}
    rows = {name: _one_each(name, value, count) for name, value in held.items() if embedded or value is not None}
    other = {name: value for name, value in arguments.items() if name not in held}
    return [
        _subject(read[i], {name: values[i] for name, values in rows.items()}, other, embedded) for i in range(count)
    ]


def _subject(text: str, row: dict[str, Any], other: Mapping[str, Any], embedded: bool) -> Subject:
    if embedded:
        return Subject(text, None, None, row, other)
    return Subject(text, row.pop("prompt"), row.pop("negative_prompt", None), {}, {**other, **row})


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    """The part of an argument that each prompt has: a text, or a tensor (or a list) with the one row."""
    if value is None or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name}: expected one, or one a prompt: got {len(value)} for {count} prompts")
    texts = all(isinstance(item, str) for item in value)
    return list(value) if texts else [value[i : i + 1] for i in range(count)]


def check_searchable(pipe: Any, arguments: Mapping[str, Any], num_candidates: int) -> None:
    """Refuse what one candidate allows and several do not.

    Raises:
        UsageError: Naming the argument, or that there is no scorer.
    """
    if pipe.scorer is None:
        raise UsageError(
            f"num_candidates={num_candidates} needs a scorer to choose with, and the pipeline has none; "
            f'pass one: {type(pipe).__name__}.from_pipe(pipe, scorer=load_scorer("clip-mini"))'
        )
    if arguments.get("latents") is not None:
        raise UsageError(
            f"latents: expected None with num_candidates={num_candidates}, because the noise comes from the seeds"
        )
    if arguments.get("output_type") == "latent":
        raise UsageError(
            f"output_type: expected 'pil', 'np' or 'pt' with num_candidates={num_candidates}, got 'latent', "
            "which cannot be scored"
        )


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU, so that the noise does not depend on the device."""
    return torch.Generator("cpu").manual_seed(seed)


def candidate_seeds(
    seed: int | None, generator: torch.Generator | list[torch.Generator] | None, count: int
) -> list[int]:
    """The seed of each candidate, so that any of them can be made again alone.

    Raises:
        UsageError: If there are not as many as candidates, or a generator does not take them.
    """
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
