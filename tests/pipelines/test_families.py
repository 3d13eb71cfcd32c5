"""Every class that chooses is its stock class with one candidate, and chooses among the stock class's images.

The behaviors are those that diffusers tests of its own pipelines. To write the table of docs/pipelines.md anew:
`PYTHONPATH=tests python tests/pipelines/test_families.py`.
"""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from support.behaviors import BEHAVIORS, PROMPTS, Case, ask, close, embeddings_of, same, seeded
from support.pages import section, write_section
from support.pipelines import BUILDERS, NOT_BUILT, SIZED, build

from sp_rerank import pipelines
from sp_rerank.diffusion.call_arguments import RAW_TENSORS
from sp_rerank.diffusion.loading import quiet
from sp_rerank.errors import UsageError
from sp_rerank.pipelines import BestOfNMixin, best_of_n
from sp_rerank.pipelines.families import class_named, stock_classes
from sp_rerank.scorers.brightness import BrightnessScorer

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
HEADING = "Classes that choose"
VERSION = "0.42.1"
FAMILIES = [stock.__name__ for stock in stock_classes().values() if stock.__name__ in BUILDERS]
FAIL_TOGETHER = ("ZImageControlNetInpaintPipeline",)
"""Pipelines that fail with several images in a call."""
HEAD = f"""
`best_of_n(pipe, scorer=scorer)` of `sp_rerank.pipelines` returns the class of the pipeline's family around the same
weights; each is also imported by its name, such as `from sp_rerank.pipelines import FluxBestOfNPipeline`. The table is
of `tests/pipelines/test_families.py`, on tiny random weights: {len(BEHAVIORS)} behaviors that diffusers tests of its
pipelines, asked of the stock class and of ours (passed / failed / skipped; what a stock class fails is a matter of its
own, or of its tiny stand-in); whether one candidate is the stock class's image bit for bit; whether the images of
several candidates are those that the stock class makes of their seeds; and whether `prompt_embeds` beside a
`score_prompt` choose what the text does.

| class | stock | ours | one candidate | several | embeddings |
|---|---|---|---|---|---|
"""

pytestmark = [
    pytest.mark.skipif(diffusers.__version__ != VERSION, reason="the page is of another version of diffusers"),
    pytest.mark.filterwarnings("ignore"),  # of diffusers and transformers
]


class Recorder(BrightnessScorer):
    """Remembers what it was given to read."""

    def __init__(self) -> None:
        self.prompts: set[Any] = set()

    def score(self, prompt: Any, images: Any) -> Any:
        self.prompts.add(prompt)
        return super().score(prompt, images)


def cases(name: str) -> tuple[Case, Case]:
    """The stock pipeline and ours around its modules."""
    pipe, arguments = build(name)
    with quiet():
        stock = Case(pipe, arguments, type(pipe))
        return stock, stock.around(best_of_n(pipe, scorer=Recorder()))


@functools.cache
def asked(name: str) -> dict[str, tuple[str, str]]:
    """What came of each behavior, for the stock class and for ours."""
    stock, ours = cases(name)
    return {word: (ask(behavior, stock), ask(behavior, ours)) for word, behavior in BEHAVIORS.items()}


def one_candidate(name: str) -> str:
    stock, ours = cases(name)
    with quiet():
        return "the same bits" if same(ours.call().images, stock.call().images) else "other images"


def several(name: str) -> str:
    stock, ours = cases(name)
    with quiet():
        found = ours.call(generator=None, seed=5, num_candidates=3, return_all=True, candidate_batch_size=1)
        images = {seed: stock.call(generator=seeded(seed)).images[0] for seed in (5, 6, 7)}
    assert sorted(found.seeds) == [5, 6, 7]
    assert found.scores == sorted(found.scores, reverse=True)
    assert ours.pipe.scorer.prompts == {PROMPTS[0]}
    expected = np.stack([images[seed] for seed in found.seeds])
    if same(found.images, expected):
        return "the same bits"
    return "within 1e-4" if close(found.images, expected, 1e-4) else "other images"


def embedded(name: str) -> str:
    if asked(name)["prompt_in_isolation"][0] != "passed":
        return "-"
    _, ours = cases(name)
    call = {"generator": None, "seed": 5, "num_candidates": 2, "return_all": True}
    call["candidate_batch_size"] = 1 if name in FAIL_TOGETHER else 2
    with quiet():
        embeddings = embeddings_of(ours)
        by_text = ours.call(**call)
        found = ours.call(**embeddings, **call, score_prompt="what it shows")
    assert ours.pipe.scorer.prompts == {PROMPTS[0], "what it shows"}
    alike = found.seeds == by_text.seeds and close(found.images, by_text.images, 1e-3)
    return "the text's" if alike else "other images"


def row(name: str) -> str:
    results = asked(name)
    counts = [counted([pair[place] for pair in results.values()]) for place in (0, 1)]
    made = [one_candidate(name), several(name), embedded(name)]
    return f"| {pipelines.families._name_for(build(name)[0].__class__)} | {' | '.join([*counts, *made])} |"


def kind_of(outcome: str) -> str:
    return outcome if outcome in ("passed", "skipped") else "failed"


def counted(outcomes: list[str]) -> str:
    counts = Counter(map(kind_of, outcomes))
    return " / ".join(str(counts[word]) for word in ("passed", "failed", "skipped"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_class_behaves_as_its_stock_class(name):
    line = row(name)
    for word, (stock, ours) in asked(name).items():
        assert kind_of(ours) in (kind_of(stock), "passed"), f"{word}: {ours}"
    assert "other images" not in line
    assert line in section(PAGE, HEADING).splitlines()


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_that_are_not_the_arrays_are_known(name):
    """Whoever scores tensors of a pipeline that leaves them in [-1, 1] scores other images."""
    stock, _ = cases(name)
    with quiet():
        tensors, arrays = (stock.call(output_type=kind).images for kind in ("pt", "np"))
    assert (name in RAW_TENSORS) != close(tensors.permute(0, 2, 3, 1).float().numpy(), arrays, 1e-5)


def test_the_table_has_every_class():
    named = [line.split("|")[1].strip() for line in section(PAGE, HEADING).splitlines() if "BestOfNPipeline |" in line]
    assert named == [name for name, stock in stock_classes().items() if stock.__name__ in BUILDERS]
    assert {stock.__name__ for stock in stock_classes().values()} - set(FAMILIES) == set(NOT_BUILT)


# The mechanism


def test_a_class_is_made_once_and_is_found_by_its_name():
    assert pipelines.FluxBestOfNPipeline is class_named("FluxBestOfNPipeline")
    assert issubclass(pipelines.FluxBestOfNPipeline, diffusers.FluxPipeline)
    assert "QwenImageBestOfNPipeline" in dir(pipelines)
    with pytest.raises(AttributeError, match="no attribute 'MagicBestOfNPipeline'"):
        _ = pipelines.MagicBestOfNPipeline


def test_a_class_of_ones_own_needs_no_more_than_the_mixin():
    class Mine(diffusers.StableDiffusionPipeline):
        pass

    class MineThatChooses(BestOfNMixin, Mine):
        pass

    stock, _ = build("StableDiffusionPipeline")
    pipe = MineThatChooses.from_pipe(Mine(**stock.components, requires_safety_checker=False), scorer=Recorder())
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a lemon", num_inference_steps=2, num_candidates=2, seed=0, output_type="pt")
    assert out.scores == sorted(out.scores, reverse=True)
    with pytest.raises(UsageError, match=r"Mine has no class that chooses.*sp_rerank\.generate\(prompt, pipe=pipe"):
        best_of_n(Mine(**stock.components, requires_safety_checker=False))


@pytest.mark.parametrize("name", ["HeliosPipeline", "StableDiffusionImg2ImgPipeline"])
def test_a_family_without_a_class_names_generate(name):
    kind = getattr(diffusers, name)
    with pytest.raises(UsageError, match=rf"{name} has no class that chooses; .*sp_rerank\.generate") as refused:
        best_of_n(kind.__new__(kind))
    assert "\n" not in str(refused.value)


def test_from_pipe_converts_nothing_and_drops_nothing():
    stock, _ = build("FluxPipeline")
    pipe = diffusers.FluxPipeline(**stock.components)
    pipe.vae = diffusers.AutoencoderTiny(latent_channels=4).to(torch.bfloat16)  # no class that the signature names
    ours = best_of_n(pipe, scorer=BrightnessScorer())
    assert all(getattr(ours, name) is part for name, part in pipe.components.items())
    assert (ours.transformer.dtype, ours.vae.dtype) == (torch.float32, torch.bfloat16)
    again = best_of_n(ours)
    assert type(again) is type(ours)
    assert again.scorer is ours.scorer


def test_a_second_prompt_has_its_own_search():
    _, ours = cases("StableDiffusionXLPipeline")
    call = {"generator": None, "seed": 0, "num_candidates": 2, "candidate_batch_size": 1, "output_type": "np"}
    both = ours.call(prompt=list(PROMPTS), prompt_2=["a cat", "a dog"], negative_prompt="blur", **call)
    for place, other in enumerate(("a cat", "a dog")):
        alone = ours.call(prompt=PROMPTS[place], prompt_2=other, negative_prompt="blur", **call)
        assert same(both.images[place : place + 1], alone.images)
    assert not same(both.images[:1], ours.call(negative_prompt="blur", **call).images)  # prompt_2 is read


def test_rows_of_embeddings_have_their_searches_and_texts():
    _, ours = cases("StableDiffusionXLPipeline")
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        made = [ours.pipe.encode_prompt(prompt, negative_prompt="") for prompt in PROMPTS]
    rows = {name: torch.cat(values) for name, values in zip(names, zip(*made, strict=True), strict=True)}
    call = {"generator": None, "seed": 3, "num_candidates": 2, "return_all": True}
    found = ours.call(prompt=None, score_prompt=["first", "second"], **rows, **call)
    assert ours.pipe.scorer.prompts == {"first", "second"}
    by_text = ours.call(prompt=list(PROMPTS), negative_prompt="", **call)
    assert found.seeds == by_text.seeds
    assert close(found.images, by_text.images, 1e-3)
    with pytest.raises(UsageError, match="score_prompt: expected one, or one a prompt: got 3 for 2 prompts"):
        ours.call(prompt=None, score_prompt=["a"] * 3, **rows, **call)
    with pytest.raises(UsageError, match="prompt_embeds: expected score_prompt beside them"):
        ours.call(prompt=None, **rows, **call)


def test_the_scorer_may_read_another_text_than_the_pipeline():
    _, ours = cases("StableDiffusionPipeline")
    by_text = ours.call(generator=None, seed=0, num_candidates=2)
    found = ours.call(generator=None, seed=0, num_candidates=2, score_prompt="a lemon")
    assert same(found.images, by_text.images)
    assert ours.pipe.scorer.prompts == {PROMPTS[0], "a lemon"}


def test_embeddings_are_halved_as_the_text_is(tmp_path):
    schedule = tmp_path / "halved.toml"
    schedule.write_text('strategy = "halving"\nrounds = [{share = 0.5, keep = 2}]\n')
    _, ours = cases("StableDiffusion3Pipeline")
    with torch.no_grad():
        made = ours.pipe.encode_prompt(PROMPTS[0], None, None, negative_prompt="")
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    call = {"generator": None, "seed": 3, "num_candidates": 4, "search": schedule, "num_inference_steps": 4}
    found = ours.call(prompt=None, score_prompt="x", **dict(zip(names, made, strict=True)), **call)
    by_text = ours.call(negative_prompt="", **call)
    assert found.seeds == by_text.seeds
    assert close(found.images, by_text.images, 1e-3)


OPENS = """
import sys
import numpy as np
import torch
from diffusers import DiffusionPipeline
from sp_rerank import pipelines
from sp_rerank.diffusion.loading import quiet

with quiet():
    for folder in sys.argv[1:]:
        for pipe in (
            getattr(pipelines, folder.rsplit("/", 1)[1]).from_pretrained(folder),
            DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32),
        ):
            pipe.set_progress_bar_config(disable=True)
            size = {"height": 16, "width": 16}
            out = pipe("a lemon", num_inference_steps=2, num_candidates=2, seed=0, output_type="np", **size)
            print(type(pipe).__module__, type(pipe).__name__, pipe.scorer.name, out.seeds[0])
            np.save(folder + ".npy", out.images)
"""


def test_saved_folders_open_in_a_new_process_with_their_scorers(tmp_path, encoder):
    """By the class, and by plain diffusers, which reads the file beside model_index.json."""
    expected = {}
    for name in ("StableDiffusionXLPipeline", "FluxPipeline", "ChromaPipeline", "AuraFlowPipeline"):
        with quiet():
            ours = best_of_n(build(name)[0], scorer=encoder)
            ours.set_progress_bar_config(disable=True)
            made = ours("a lemon", num_inference_steps=2, num_candidates=2, seed=0, output_type="np", **SIZED)
            ours.save_pretrained(tmp_path / type(ours).__name__)
        expected[type(ours).__name__] = made
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OPENS, *(str(tmp_path / name) for name in expected)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    wanted = [
        f"sp_rerank.pipelines {name} {encoder.name} {out.seeds[0]}" for name, out in expected.items() for _ in range(2)
    ]
    assert lines == wanted
    for name, out in expected.items():
        assert close(np.load(tmp_path / f"{name}.npy"), out.images, 1e-3)  # other threads add in another order


def test_every_class_keeps_the_order_of_offloading_and_names_its_components():
    for name, stock in stock_classes().items():
        ours = class_named(name)
        if stock.model_cpu_offload_seq:
            assert ours.model_cpu_offload_seq == f"{stock.model_cpu_offload_seq}->scorer"
        parameters = inspect.signature(ours.__init__).parameters
        assert list(parameters)[:-1] == list(inspect.signature(stock.__init__).parameters), name
        assert "scorer" in ours._optional_components


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    table = []
    for family in FAMILIES:
        table.append(row(family))
        print(table[-1], flush=True)
        for behavior, outcome in asked(family).items():
            if outcome[0] != outcome[1] or outcome[0] not in ("passed", "skipped"):
                print("   ", behavior, *outcome, flush=True)
    write_section(PAGE, HEADING, HEAD + "\n".join(table) + "\n")
