"""Denoisers that are wrapped, cached or shared by threads; memory that runs out in any back end's words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from copy import copy
from typing import Any

import pytest
import torch
from support.doubles import SeededPipe
from support.tiny import build_sd_pipeline

from sp_rerank import generate
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.diffusion.trajectory import open_trajectories
from sp_rerank.errors import TryAgainError, UsageError, is_device_lost, is_out_of_memory
from sp_rerank.scorers.brightness import BrightnessScorer


@pytest.fixture(scope="module")
def plain() -> Any:
    return build_sd_pipeline()


@pytest.fixture
def pipe(plain) -> Any:
    """One whose modules a test may replace."""
    return copy(plain)


def scores_of(pipe: Any, **options: Any) -> list[tuple[int, float]]:
    ranked = generate("a lemon", pipe=pipe, scorer=BrightnessScorer(), n=3, top_k=3, steps=2, **options)
    return [(entry.candidate.index, entry.score) for entry in ranked]


def hooked(unet: Any) -> Any:
    unet.register_forward_pre_hook(lambda *_: None)
    return unet


def with_lora(unet: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(unet, LoraConfig(target_modules=["to_q"], r=2))


def with_lora_adapter(unet: Any) -> Any:
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(target_modules=["to_q"], r=2))
    return unet


WRAPPERS = {
    "compiled": lambda unet: torch.compile(unet, backend="eager"),
    "hooked": hooked,
    "with LoRA": with_lora,
    "with a LoRA adapter": with_lora_adapter,
}


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # NumPy 2 in diffusers' schedulers
@pytest.mark.parametrize("search", ["exhaustive", "steering"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_denoiser_makes_the_same_images(name, search):
    options = {} if search == "exhaustive" else {"search": search, "batch_size": 3}
    plain, wrapped = build_sd_pipeline(stochastic=True), build_sd_pipeline(stochastic=True)
    steps = {"steps": 10} if search == "steering" else {"steps": 2}
    wrapped.unet = WRAPPERS[name](wrapped.unet)
    pictures = [
        generate("a lemon", pipe=pipe, scorer=BrightnessScorer(), n=3, top_k=3, **steps, **options)
        for pipe in (plain, wrapped)
    ]
    expected, found = ([(entry.candidate.index, entry.score) for entry in best] for best in pictures)
    assert len(found) == 3
    assert found == expected


def test_a_cached_denoiser_begins_each_batch_anew():
    from diffusers import FirstBlockCacheConfig
    from support.pipelines import build_flux_class

    def batches(seeds: list[int]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        pipe = build_flux_class("FluxPipeline", num_layers=2)
        pipe.set_progress_bar_config(disable=True)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))  # all but the first step are spared
        size = {"height": 16, "width": 16, "max_sequence_length": 16}
        sampler = Sampler(pipe, "a lemon", batch_size=2, num_inference_steps=3, **size)
        return [batch.images for batch in sampler.batches(dict(enumerate(seeds)))]

    _, second = batches([0, 1, 2, 3])
    (alone,) = batches([2, 3])
    assert torch.equal(second, alone)


class Untruthful(torch.nn.Identity):
    """Has no truth value, like a compiled module."""

    def __len__(self) -> int:
        raise TypeError("has no len()")


def test_nothing_asks_for_the_truth_of_a_foreign_object():
    pipe = SeededPipe()
    pipe.unet = pipe.scheduler = Untruthful()
    assert len(scores_of(pipe)) == 3


MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CUDA, as another error": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
    "MPS": RuntimeError(
        "MPS backend out of memory (MPS allocated: 17 GB, other allocations: 1 GB, max allowed: 18 GB)"
    ),
    "MPS, one buffer": RuntimeError("Invalid buffer size: 58.07 GB"),
    "the CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "ROCm": RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    "XPU": RuntimeError("Native API failed: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_runs_out_above_two_images_halves_the_batch(name):
    def spoil(seeds: list[int], images: torch.Tensor) -> None:
        if len(seeds) > 2:
            raise MEMORY[name]

    batches = list(Sampler(SeededPipe(spoil), "a lemon", batch_size=8).batches(dict(enumerate(range(8)))))
    assert [len(batch.indices) for batch in batches] == [2, 2, 2, 2]
    assert not is_device_lost(MEMORY[name])


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "HIP error: unspecified launch failure",
        "MPS backend failed",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        "level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)",
    ],
)
def test_a_lost_device_is_no_lack_of_memory(text):
    def spoil(*_: Any) -> None:
        raise RuntimeError(text)

    assert is_device_lost(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError(text))
    with pytest.raises(TryAgainError, match="the accelerator failed"):
        scores_of(SeededPipe(spoil))


def test_other_errors_are_neither():
    for error in (RuntimeError("The size of tensor a (2) must match"), ValueError("out of memory"), KeyError("CUDA")):
        assert not is_out_of_memory(error)
        assert not is_device_lost(error)


def in_threads(works: list[Any]) -> list[Any]:
    """The results of functions that begin at the same time."""
    barrier, results = threading.Barrier(len(works)), [None] * len(works)

    def work(place: int) -> None:
        barrier.wait()
        try:
            results[place] = works[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_three_threads_on_one_pipeline_give_the_serial_results(plain):
    def run(seed: int) -> list[Any]:
        sampler = Sampler(plain, f"a lemon {seed}", batch_size=2, guidance_scale=3.0, num_inference_steps=5)
        batches = list(sampler.batches({index: seed + index for index in range(4)}))
        return [(batch.nfe, batch.images) for batch in batches]

    serial = [run(seed) for seed in (0, 10, 20)]
    threaded = in_threads([lambda seed=seed: run(seed) for seed in (0, 10, 20)])
    for expected, found in zip(serial, threaded, strict=True):
        assert not isinstance(found, Exception), found
        assert [nfe for nfe, _ in found] == [nfe for nfe, _ in expected] == [6, 6]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(expected, found, strict=True))


def test_three_threads_take_turns_at_a_tokenizer():
    """A pipeline whose text is not encoded beforehand: each call tokenizes."""
    from support.loops import build_sd3

    pipe = build_sd3()
    tokenizer, busy = pipe.tokenizer, []

    class Counting:
        model_max_length = tokenizer.model_max_length

        def __call__(self, *args: Any, **more: Any) -> Any:
            busy.append(1)
            assert len(busy) == 1, "two threads at once"
            threading.Event().wait(0.01)
            busy.pop()
            return tokenizer(*args, **more)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    vars(pipe)["tokenizer"] = Counting()

    def run(seed: int) -> torch.Tensor:
        return next(Sampler(pipe, "a lemon", batch_size=1, num_inference_steps=1).batches({0: seed})).images

    for found in in_threads([lambda seed=seed: run(seed) for seed in range(3)]):
        assert isinstance(found, torch.Tensor), found


def test_a_callback_that_interrupts_is_seen_by_the_caller(pipe):
    def interrupt(twin: Any, *_: Any) -> dict[str, Any]:
        twin._interrupt = True
        return {}

    sampler = Sampler(pipe, "a lemon", batch_size=1, num_inference_steps=2, callback_on_step_end=interrupt)
    next(sampler.batches({0: 0}))
    assert pipe.interrupt
    next(Sampler(pipe, "a lemon", batch_size=1, num_inference_steps=2).batches({0: 0}))
    assert not pipe.interrupt


def test_a_pipeline_that_was_never_called_can_be_asked_whether_it_was_interrupted():
    pipe = build_sd_pipeline()
    with open_trajectories(Sampler(pipe, "a lemon", batch_size=1, num_inference_steps=2), {0: 0}, (1,)):
        assert not pipe.interrupt


def test_a_call_of_something_else_is_refused(pipe):
    sampler = Sampler(pipe, "a lemon", batch_size=1, num_inference_steps=2, call=pipe.__call__)
    assert next(sampler.batches({0: 0})).images.shape == (1, 3, 16, 16)
    other = Sampler(pipe, "a lemon", batch_size=1, num_inference_steps=2, call=build_sd_pipeline().__call__)
    with pytest.raises(UsageError, match="expected the pipeline or one of its methods"):
        next(other.batches({0: 0}))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So that three threads do not compete for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
