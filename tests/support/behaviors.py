"""What diffusers asks of every pipeline (its own pipeline tests, listed by hand), asked of a stock class or of ours.

Each behavior is a function that raises AssertionError where a pipeline does not have it, and SkippedError where it has
no such thing. Arguments, sizes and weights are tiny; nothing here knows what a pipeline is for.
"""

from __future__ import annotations

import ast
import inspect
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sp_rerank.diffusion.loading import quiet

PROMPTS = ("a lemon on the beach", "an apple")


class SkippedError(Exception):
    """The pipeline has nothing of which this could be asked."""


@dataclass(frozen=True)
class Case:
    """A pipeline and what its call takes.

    Attributes:
        pipe: Stock, or ours around the same modules.
        arguments: Of its call, beside prompt, steps and noise.
        stock: The stock class.
    """

    pipe: Any
    arguments: dict[str, Any]
    stock: type

    def call(self, **more: Any) -> Any:
        common = {"prompt": PROMPTS[0], "num_inference_steps": 2, "generator": seeded(0), "output_type": "np"}
        return self.pipe(**{**common, **self.arguments, **more})

    def takes(self, name: str) -> bool:
        return name in inspect.signature(self.pipe.__call__).parameters

    def around(self, pipe: Any) -> Case:
        pipe.set_progress_bar_config(disable=True)
        return Case(pipe, self.arguments, self.stock)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def same(first: Any, second: Any) -> bool:
    """Bit for bit, whatever the output type."""
    pairs = list(zip(first, second, strict=True))
    return all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in pairs)


def close(first: Any, second: Any, tolerance: float) -> bool:
    return bool(np.abs(np.asarray(first, dtype="float64") - np.asarray(second, dtype="float64")).max() < tolerance)


def call_signature(case: Case) -> None:
    """test_pipeline_call_signature: the arguments that every pipeline has, each with a default."""
    parameters = inspect.signature(case.pipe.__call__).parameters
    for name in ("num_inference_steps", "num_images_per_prompt", "generator", "output_type", "return_dict"):
        assert parameters[name].default is not inspect.Parameter.empty, name
    ours, stock = (list(inspect.signature(kind.__call__).parameters.values()) for kind in (type(case.pipe), case.stock))
    named = [entry for entry in stock if entry.kind is not entry.VAR_KEYWORD]
    assert [(p.name, p.kind, p.default) for p in ours[: len(named)]] == [(p.name, p.kind, p.default) for p in named]


def repeatable(case: Case) -> None:
    """The same seed gives the same image."""
    assert same(case.call().images, case.call().images)


def dict_and_tuple(case: Case) -> None:
    """test_dict_tuple_outputs_equivalent."""
    plain = case.call(return_dict=False)
    assert type(plain) is tuple
    assert same(plain[0], case.call().images)


def output_types(case: Case) -> None:
    """The image processors' tests: pil, np and pt are one image."""
    as_pil, as_np, as_pt = (case.call(output_type=kind).images for kind in ("pil", "np", "pt"))
    assert as_np.shape[:1] == as_pt.shape[:1] == (len(as_pil),) == (1,)
    assert close(as_pt.permute(0, 2, 3, 1).float().numpy(), as_np, 1e-5)
    assert close(np.asarray(as_pil[0]), as_np[0] * 255, 0.51)


def images_per_prompt(case: Case) -> None:
    """test_num_images_per_prompt."""
    for prompts in (1, 2):
        noise = [seeded(i) for i in range(2 * prompts)]
        more = {"num_images_per_prompt": 2, "generator": noise, **one_each(case, prompts)}
        assert len(case.call(prompt=list(PROMPTS[:prompts]), **more).images) == 2 * prompts


def one_each(case: Case, prompts: int) -> dict[str, Any]:
    """Arguments that must be of as many texts as there are prompts."""
    negative = case.arguments.get("negative_prompt")
    return {"negative_prompt": [negative] * prompts} if negative else {}


def batch_of_prompts(case: Case) -> None:
    """test_inference_batch_consistent: as many images as prompts."""
    images = case.call(prompt=list(PROMPTS), generator=[seeded(0), seeded(1)], **one_each(case, 2)).images
    assert len(images) == 2
    assert np.isfinite(images).all()


def batch_is_its_single(case: Case) -> None:
    """test_inference_batch_single_identical: the first image of a batch is the image made alone."""
    batch = case.call(prompt=[PROMPTS[0]] * 2, generator=[seeded(0), seeded(1)], **one_each(case, 2)).images
    assert close(batch[0], case.call().images[0], 1e-3)


def callback_inputs(case: Case) -> None:
    """test_callback_inputs: the callback gets what it asks for, and what it returns is taken."""
    if not case.takes("callback_on_step_end") or "latents" not in case.pipe._callback_tensor_inputs:
        raise SkippedError
    steps: list[set[str]] = []

    def zero(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(set(tensors))
        return {"latents": torch.zeros_like(tensors["latents"])}

    more = {"callback_on_step_end": zero, "callback_on_step_end_tensor_inputs": ["latents"]}
    blank, others = case.call(**more).images, case.call(**more, generator=seeded(1)).images
    assert steps and all(names == {"latents"} for names in steps)
    assert same(blank, others)


def components(case: Case) -> None:
    """test_components_function: the components make the pipeline again."""
    held = case.pipe.components
    assert all(getattr(case.pipe, name) is part for name, part in held.items())
    settings = {name: case.pipe.config[name] for name in signature_settings(case.pipe) if name in case.pipe.config}
    again = type(case.pipe)(**held, **settings)
    assert same(case.around(again).call().images, case.call().images)


def signature_settings(pipe: Any) -> set[str]:
    return set(pipe._get_signature_keys(pipe)[1]) - set(pipe.components)


def from_pipe(case: Case) -> None:
    """test_from_pipe_consistent_forward_pass: there and back, on the very same modules."""
    there = type(case.pipe).from_pipe(case.pipe)
    back = case.stock.from_pipe(there)
    assert all(getattr(back, name) is getattr(case.pipe, name) for name in back.components if name != "scorer")
    assert same(case.around(back).call().images, case.call().images)


def save_and_load(case: Case) -> None:
    """test_save_load_local: what is loaded again makes the same image."""
    if any(type(part).__module__.startswith("support.") for part in case.pipe.components.values()):
        raise SkippedError  # stand-ins that no library has
    with tempfile.TemporaryDirectory() as folder:
        case.pipe.save_pretrained(folder)
        loaded = type(case.pipe).from_pretrained(folder, dtype=torch.float32)
    assert close(case.around(loaded).call().images, case.call().images, 1e-4)


def to_dtype(case: Case) -> None:
    """test_to_dtype: every module takes the precision."""
    models = [part for part in case.pipe.components.values() if isinstance(part, torch.nn.Module)]
    try:
        case.pipe.to(dtype=torch.bfloat16)
        assert {part.dtype for part in models} == {torch.bfloat16}
    finally:
        case.pipe.to(dtype=torch.float32)


def prompt_in_isolation(case: Case) -> None:
    """test_encode_prompt_works_in_isolation: embeddings made apart from the call give the image of the text."""
    embedded = embeddings_of(case)
    assert close(case.call(**embedded).images, case.call().images, 1e-4)


def embeddings_of(case: Case) -> dict[str, Any]:
    """Arguments that take the place of the prompt, named as the return statement of `encode_prompt` names them."""
    encode = getattr(case.pipe, "encode_prompt", None)
    if encode is None or not case.takes("prompt_embeds"):
        raise SkippedError
    taken = inspect.signature(encode).parameters
    guided = {"do_classifier_free_guidance": True} if case.takes("negative_prompt_embeds") else {}
    passed = {
        **{name: value for name, value in case.arguments.items() if name in taken},
        **{"device": torch.device("cpu"), "num_images_per_prompt": 1, "prompt": PROMPTS[0], "prompt_2": None, **guided},
    }
    required = [name for name, entry in taken.items() if entry.default is entry.empty and name not in passed]
    passed |= dict.fromkeys(required)
    with torch.no_grad():
        made = encode(**{name: value for name, value in passed.items() if name in taken})
    names, values = returned_names(encode), made if isinstance(made, tuple) else (made,)
    found = {name: value for name, value in zip(names, values, strict=False) if case.takes(name) and value is not None}
    if "prompt_embeds" not in found or len(names) != len(values):
        raise SkippedError
    negative = {"negative_prompt": None} if "negative_prompt_embeds" in found else {}
    return {"prompt": None, **negative, **found}


def returned_names(encode: Callable[..., Any]) -> list[str]:
    """The names in the last return statement of a method."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(encode)))
    last = [node for node in ast.walk(tree) if isinstance(node, ast.Return)][-1].value
    parts = last.elts if isinstance(last, ast.Tuple) else [last]
    return [part.id if isinstance(part, ast.Name) else "" for part in parts]


BEHAVIORS: dict[str, Callable[[Case], None]] = {
    behavior.__name__: behavior
    for behavior in (
        call_signature, repeatable, dict_and_tuple, output_types, images_per_prompt, batch_of_prompts,
        batch_is_its_single, callback_inputs, components, from_pipe, save_and_load, to_dtype, prompt_in_isolation,
    )
}  # fmt: skip


def ask(behavior: Callable[[Case], None], case: Case) -> str:
    """ "passed", "skipped", or why it failed."""
    try:
        with quiet():
            behavior(case)
    except SkippedError:
        return "skipped"
    except Exception as error:  # a pipeline raises what it likes
        return f"{type(error).__name__}: {str(error).strip()[:200]}"
    return "passed"
