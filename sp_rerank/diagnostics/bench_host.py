"""What a run costs beside the denoiser: a pipeline and a scorer that cost nothing, and runs of two sizes.

Figures are CPU seconds of a process of its own, all threads of it, after a small run that is not counted. Knows the
library as anybody does who brings a pipeline of their own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sp_rerank.diagnostics.timing import PROMPT, peak_memory

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

SIDE = 64  # pixels of an image, as the mini model makes them
BATCH = 20
WARM_UP = 3 * BATCH
KINDS = 97  # different images, so that no two of a batch are the same


def compare_host(n: int, times: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """What a candidate costs where making and scoring it is free, in a run and in a larger one.

    Args:
        n: Candidates of the smaller run.
        times: How many times as many the larger one has.
        rounds: How often each is measured, in turn.
        progress: Called with a line for each figure as it comes.

    Returns:
        Milliseconds of CPU and kB of memory a candidate (medians), and the ratio of the two sizes.
    """
    sizes = (n, n * times)
    measured: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for turn in range(rounds):
        for size in sizes:
            found = _in_a_process(size)
            measured[size].append(found)
            figures = f"{found['ms']:.2f} ms, {found['kB']:.1f} kB a candidate"
            progress(f"round {turn + 1} of {rounds}: n = {size}: {figures}")
    ms = {size: [found["ms"] for found in measured[size]] for size in sizes}
    return {
        **{f"n = {size}, ms of CPU a candidate": round(statistics.median(ms[size]), 2) for size in sizes},
        **{
            f"n = {size}, kB of memory a candidate": round(statistics.median(f["kB"] for f in measured[size]), 1)
            for size in sizes
        },
        f"a candidate of {sizes[1]} / one of {sizes[0]}": round(
            statistics.median(large / small for small, large in zip(ms[sizes[0]], ms[sizes[1]], strict=True)), 3
        ),
    }


def _in_a_process(n: int) -> dict[str, float]:
    """What `measure` gives in a process that has done nothing else."""
    code = f"import json; from sp_rerank.diagnostics.bench_host import measure; print(json.dumps(measure({n})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a run of {n} free candidates failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(n: int) -> dict[str, float]:
    """A run of n free candidates into a folder that is removed: CPU milliseconds and kB of memory a candidate."""
    from sp_rerank.generate import generate

    pipe, scorer = FreePipe(), FreeScorer()

    def run(folder: Path, size: int) -> None:
        generate(PROMPT, pipe=pipe, scorer=scorer, n=size, steps=1, batch_size=BATCH, out=folder)

    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch) / "warm", WARM_UP)
        held, began = peak_memory(), time.process_time()
        run(Path(scratch) / "run", n)
        seconds, grown = time.process_time() - began, peak_memory() - held
    return {"ms": 1000 * seconds / n, "kB": 1024 * grown / n}


class FreePipe:
    """A text-to-image pipeline that hands out images which it has already, by seed."""

    def __init__(self) -> None:
        import torch
        from torch.nn import functional as F

        noise = torch.Generator().manual_seed(0)
        coarse = torch.rand(KINDS, 3, 8, 8, generator=noise)
        self._images = F.interpolate(coarse, size=SIDE, mode="bilinear")  # PNG files of a common size
        self.unet, self.scheduler = torch.nn.Identity(), SimpleNamespace()
        self.device, self.dtype, self.config = torch.device("cpu"), torch.float32, {}

    def __call__(
        self,
        prompt: str,
        num_inference_steps: int = 1,
        num_images_per_prompt: int = 1,
        generator: Sequence[torch.Generator] = (),
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> SimpleNamespace:
        """The images of these seeds, one call of the denoiser a step."""
        for _ in range(num_inference_steps):
            self.unet(self._images[:1, :1, 0, 0])
        images = self._images[[noise.initial_seed() % KINDS for noise in generator]]
        return SimpleNamespace(images=images, nsfw_content_detected=None)


class FreeScorer:
    """Gives each image of a batch its first red value."""

    name = "free@0"

    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """(n,) float32."""
        import torch

        if isinstance(images, torch.Tensor):
            return images[:, 0, 0, 0].float()
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images])  # pyright: ignore
