"""Every text-to-image pipeline of the installed diffusers: it works, or one line says why not; docs/pipelines.md.

To write the table anew: `PYTHONPATH=tests python tests/diffusion/test_pipelines_table.py`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from support.pipelines import BUILDERS, NOT_BUILT, build, classes_in_mapping

from sp_rerank.config import Round
from sp_rerank.diffusion.call_arguments import pipeline_errors
from sp_rerank.diffusion.loading import default_settings, quiet
from sp_rerank.diffusion.previews import Previews
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.diffusion.watchable import check_watchable
from sp_rerank.errors import UsageError
from sp_rerank.search.exhaustive import exhaustive
from sp_rerank.search.halving import halving
from sp_rerank.search.screening import screening

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
VERSION = "0.42.1"
SEARCHES: dict[str, Callable[..., Any]] = {
    "exhaustive": exhaustive,
    "screening": screening([Round(2, 1)]),
    "halving": halving([Round(0.4, 1)]),
}
WORKS = "works"
HEAD = f"""# Text-to-image pipelines

What `generate` can do with each class of `AUTO_TEXT2IMAGE_PIPELINES_MAPPING` of diffusers {VERSION}, tried on tiny
random weights by `tests/diffusion/test_pipelines_table.py`: all images of a search are finite, and the finalists of
screening and halving are the images of the exhaustive search. Where a search is refused, the message is quoted.
Pipelines that take a control image got one: in Python, `generate(..., pipe_kwargs={{"image": picture}})` hands it over,
in memory, for run.json cannot keep a picture.

| pipeline | exhaustive | screening | halving |
|---|---|---|---|
"""

pytestmark = [
    pytest.mark.skipif(diffusers.__version__ != VERSION, reason="the page is of another version of diffusers"),
    pytest.mark.filterwarnings("ignore"),  # of diffusers and transformers
]


def sampler_of(name: str) -> Sampler:
    pipe, arguments = build(name)
    guidance = default_settings(pipe)[1] if vars(pipe) else 0.0
    given = {"guidance_scale": guidance, "num_inference_steps": 3, **arguments}
    return Sampler(pipe, "a lemon", batch_size=2, **given)


@functools.cache
def tried(name: str) -> dict[str, tuple[str, dict[int, torch.Tensor]]]:
    """For each search what came of it, and the finished images by index."""
    results = {}
    for search, strategy in SEARCHES.items():
        images: dict[int, torch.Tensor] = {}
        try:
            with quiet():
                found = strategy(sampler_of(name), brightness, {0: 5, 1: 6}, top_k=1, prior={})
                for scored in found:
                    if scored.stage is None:
                        images |= dict(zip(scored.batch.indices, scored.batch.images, strict=True))
            results[search] = (WORKS, images)
        except UsageError as error:
            results[search] = (str(error), images)
    return results


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean((1, 2, 3)).cpu()


def row(name: str) -> str:
    if name in NOT_BUILT:
        cells = [NOT_BUILT[name], "", ""]
    else:
        cells = [message for message, _ in tried(name).values()]
        cells = [
            cell if cell not in cells[:place] or cell == WORKS else "as before" for place, cell in enumerate(cells)
        ]
    return f"| {name} | {' | '.join(cells)} |"


def page() -> str:
    return HEAD + "\n".join(map(row, classes_in_mapping())) + "\n"


def test_every_class_of_the_mapping_is_in_the_table():
    assert set(classes_in_mapping()) == set(BUILDERS) | set(NOT_BUILT)
    assert not set(BUILDERS) & set(NOT_BUILT)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_search_makes_the_images_of_the_exhaustive_one_or_says_why_not(name):
    results = tried(name)
    whole = results["exhaustive"][1]
    for search, (message, images) in results.items():
        assert "\n" not in message, search
        if message == WORKS:
            assert len(images) == (2 if search == "exhaustive" else 1), search
        for index, image in images.items():
            assert image.isfinite().all(), search
            torch.testing.assert_close(image, whole[index], atol=1e-2, rtol=0)
    assert row(name) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", BUILDERS)
def test_finished_latents_are_decoded_as_the_pipeline_does(name):
    if tried(name)["halving"][0] != WORKS:
        pytest.skip("is not halved")
    pipe, arguments = build(name)
    last: dict[str, torch.Tensor] = {}

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        last.update(tensors)
        return {}

    with quiet():
        images = pipe(
            prompt="a lemon", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt",
            callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["latents"], **arguments,
        ).images  # fmt: skip
    previews = Previews(pipe, height=arguments.get("height"), width=arguments.get("width"))
    torch.testing.assert_close(previews.decode(last["latents"]), images, atol=1e-4, rtol=0)


def test_z_image_without_guidance_is_halved():
    pipe, arguments = build("ZImagePipeline")
    sampler = Sampler(pipe, "a lemon", batch_size=3, guidance_scale=0.0, num_inference_steps=3, **arguments)
    whole = next(sampler.batches({0: 5, 1: 6, 2: 7})).images
    *_, last = halving([Round(0.4, 1)])(sampler, brightness, {0: 5, 1: 6, 2: 7}, top_k=1, prior={})
    torch.testing.assert_close(last.batch.images, whole[list(last.batch.indices)], atol=1e-3, rtol=0)


def test_the_page_is_the_table():
    table, _, _ = PAGE.read_text(encoding="utf-8").partition("\n## ")
    names = [line.split("|")[1].strip() for line in table.splitlines() if "| " in line]
    assert names[1:] == classes_in_mapping()
    for name in NOT_BUILT:
        assert row(name) in PAGE.read_text(encoding="utf-8").splitlines()


def test_pag_is_refused_before_an_image_is_made():
    with pytest.raises(UsageError, match="screening"):
        check_watchable(sampler_of("StableDiffusionPAGPipeline"))


@pytest.mark.parametrize("name", ["StableDiffusionControlNetPipeline", "FluxControlPipeline"])
def test_a_control_image_is_refused_halving_before_an_image_is_made(name):
    with pytest.raises(UsageError, match="lays its control image out for the whole batch"):
        check_watchable(sampler_of(name))


def test_a_pipeline_that_fails_with_several_images_says_so_and_makes_one():
    pipe, arguments = build("ZImageControlNetInpaintPipeline")
    sampler = Sampler(pipe, "a lemon", batch_size=1, guidance_scale=3.0, num_inference_steps=2, **arguments)
    assert [len(batch.images) for batch in sampler.batches({0: 5, 1: 6})] == [1, 1]
    assert tried("ZImageControlNetInpaintPipeline")["exhaustive"][0].endswith("or a batch size of 1")


def test_one_step_that_a_pipeline_did_not_foresee_is_one_line():
    pipe, arguments = build("PixArtAlphaPipeline")
    steps = {**arguments, "num_inference_steps": 1, "guidance_scale": 4.5}
    pipe = type(pipe)(**{**pipe.components, "scheduler": diffusers.DPMSolverMultistepScheduler()})
    with pytest.raises(UsageError, match=r"PixArtAlphaPipeline fails .* IndexError: .*another number"):
        next(Sampler(pipe, "a lemon", batch_size=2, **steps).batches({0: 5}))


def test_an_error_of_another_kind_is_not_taken_for_one_of_arguments():
    with pytest.raises(RuntimeError, match="Half and Float"), pipeline_errors(build("StableDiffusionPipeline")[0]):
        raise RuntimeError("Input type (Half) and bias type (Half and Float) do not match")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _, mark, rest = PAGE.read_text(encoding="utf-8").partition("\n## ")
    PAGE.write_text(page() + mark + rest, encoding="utf-8")
