"""python -m support.batch_figures NAME: the figures of docs/reports/batches.md, in tests/.

driver   memory that the driver of 100,000 prompts takes, with workers that make nothing
query    seconds for the best of each of 10,000 prompts with 100 candidates
status   seconds for the status of 10,000 units
overview seconds for the page and the comparison of 10,000 units with 100 candidates
writer   how long a denoiser that takes no CPU waits for the encoding of 96 images of 512 pixels
engine   CPU seconds of one process and of an engine's, for 12 prompts of the mini model; further words choose the ways
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PROMPTS = 100_000


class NullPool:
    """Workers that make nothing, at once."""

    def __init__(self):
        from collections import deque

        self.events, self.hired = deque(), 0

    def hire(self):
        from sp_rerank.batch.drive import Event

        self.events.append(Event(self.hired, "ready"))
        self.hired += 1
        return self.hired - 1

    def give(self, worker, pack):
        from sp_rerank.batch.drive import Event
        from sp_rerank.batch.order import Outcome

        self.events.append(Event(worker, "outcomes", tuple(Outcome(row_id, "ok") for row_id in pack.due)))

    def wait(self, seconds):
        return [self.events.popleft()] if self.events else []

    def kill(self, worker):
        raise AssertionError("a worker that makes nothing was killed")

    def close(self):
        pass


def resident() -> float:
    """Megabytes, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def driver() -> None:
    import pyarrow.parquet  # noqa: F401  # not the driver's memory

    from sp_rerank.batch.drive import Driver, Rules
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.batch.prompts import read_prompts

    with tempfile.TemporaryDirectory() as folder:
        file, small = Path(folder) / "p.txt", Path(folder) / "s.txt"
        with file.open("w") as lines:
            lines.writelines(
                f"a photo of object number {number} on a wooden table in the sun\n" for number in range(PROMPTS)
            )
        small.write_text("a\n")

        def settle(place, prompts):
            ledger = Ledger(Path(folder) / place)
            ledger.add_prompts(read_prompts(prompts))
            return sum(1 for _ in Driver(ledger, NullPool(), workers=64, rules=Rules()).settle(ledger.packs(1)))

        settle("small", small)
        before, began = resident(), time.process_time()
        count = settle("large", file)
        print(f"{count} prompts: {time.process_time() - began:.1f} s of CPU, {resident() - before:.0f} MB more")


def query() -> None:
    import duckdb
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores.parquet"
        ids, count = np.repeat(np.arange(10_000), 100), 1_000_000
        columns = {
            "prompt_id": pa.array(ids).cast(pa.string()), "seed": np.tile(np.arange(100), 10_000),
            "first": rng.random(count), "second": rng.random(count),
        }  # fmt: skip
        parquet.write_table(pa.table(columns), file, compression="zstd", row_group_size=100_000)
        duckdb.sql("select 1").fetchall()
        for name, words in {
            "best of each": f"select prompt_id, max(first), arg_max(seed, first) from '{file}' group by 1",
            "agreement of the picks": "select avg((a = b)::int) from (select arg_max(seed, first) a, "
            f"arg_max(seed, second) b from '{file}' group by prompt_id)",
        }.items():
            began, cpu = time.monotonic(), time.process_time()
            rows = duckdb.sql(words).fetchall()
            print(
                f"{name}: {len(rows)} rows, {time.monotonic() - began:.2f} s, {time.process_time() - cpu:.2f} s of CPU"
            )


def status() -> None:
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.batch.prompts import rows_of
    from sp_rerank.batch.units import key_of

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        ledger.add_prompts(rows_of(map(str, range(10_001))))
        for number in range(10_000):
            path = Path(folder) / key_of(str(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        began, cpu = time.monotonic(), time.process_time()
        found = Ledger(folder).status()
        print(f"{found.done} units: {time.monotonic() - began:.2f} s, {time.process_time() - cpu:.2f} s of CPU")


def overview() -> None:
    """10,000 units of 100 candidates with two scorers and one kept image."""
    from sp_rerank.batch.agreement import compare_batch
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.batch.overview import batch_overview
    from support.batch_objects import write_units

    units = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        write_units(Path(folder), [f"a photo of object {number} on a table" for number in range(units)], n=100)
        print(f"{units} units written: {time.process_time() - cpu:.1f} s of CPU", flush=True)
        for name, work in (("compare", compare_batch), ("overview", batch_overview)):
            began, cpu = time.monotonic(), time.process_time()
            work(Ledger(folder))
            print(f"{name}: {time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU", flush=True)


def writer() -> None:
    import torch

    from sp_rerank.generate import generate
    from sp_rerank.run import writer as run_writer
    from sp_rerank.run.commit_queue import CommitQueue
    from sp_rerank.scorers.brightness import BrightnessScorer
    from support.doubles import SeededPipe

    level, noise = torch.linspace(0, 1, 512), torch.randn(3, 512, 512, generator=torch.Generator().manual_seed(0)) / 50
    image, queues = (level[None, :, None] * level[None, None, :] + noise).clamp(0, 1), []

    class Denoiser(SeededPipe):
        """Takes the time of a call and none of the CPU, as an accelerator does."""

        def __call__(
            self, prompt, num_inference_steps=1, guidance_scale=1.0, num_images_per_prompt=1, generator=None,
            output_type="pt", return_dict=True,
        ):  # fmt: skip
            output = super().__call__(prompt, num_inference_steps, guidance_scale, num_images_per_prompt, generator)
            time.sleep(3.8)  # of an H100 for 16 images of Stable Diffusion v1.4
            output.images = image.expand(len(output.images), 3, 512, 512)
            return output

    run_writer.CommitQueue = lambda: queues.append(CommitQueue()) or queues[0]
    with tempfile.TemporaryDirectory() as folder:
        generate(
            "a cat", pipe=Denoiser(), scorer=BrightnessScorer(), out=Path(folder) / "run", n=96, batch_size=16, steps=1,
            guidance_scale=1.0,
        )  # fmt: skip
    (queue,) = queues
    share = queue.waited / queue.encoding
    print(f"encoding {queue.encoding:.1f} s of CPU, the denoiser waited {queue.waited:.2f} s: {share:.1%}")


def engine() -> None:
    prompts = "".join(f"a lemon number {number}\n" for number in range(12))
    options = ["--model", "mini", "--scorer", "clip-mini", "--n", "16", "--steps", "4"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "p.txt").write_text(prompts)
        code = (
            "from sp_rerank import generate, load_pipeline, load_scorer\n"
            "generate(open('p.txt').read().splitlines(), pipe=load_pipeline('mini'), scorer=load_scorer('clip-mini'), "
            "n=16, steps=4)"
        )
        ways = {"one process": [sys.executable, "-c", code]}
        for name, more in {"one worker": ["1", "local"], "two workers": ["2", "local"], "ray, 2": ["2", "ray"]}.items():
            words = [sys.executable, "-m", "sp_rerank", "batch", "p.txt", *options, "--out", name.replace(" ", "-")]
            ways[name] = [*words, "--workers", more[0], "--engine", more[1], "--dtype", "float32"]
        for name in sys.argv[2:] or ways:
            began = time.monotonic()
            cpu = cpu_of(ways[name], Path(folder))
            print(f"{name}: {cpu:.1f} s of CPU, {time.monotonic() - began:.1f} s", flush=True)


def cpu_of(words: list[str], folder: Path) -> float:
    """Seconds of CPU of a command and of every process that comes of it, looked at four times a second.

    Those that Ray starts have no parent left when they end, so that the command itself cannot be asked for them.
    """
    import psutil

    spent: dict[tuple[int, float], float] = {}
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            for entry in [root, *_descendants(root)]:
                with suppress(psutil.Error):
                    times = entry.cpu_times()
                    spent[entry.pid, entry.create_time()] = times.user + times.system
            time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return sum(spent.values())


def _descendants(root: Any) -> list[Any]:
    import psutil

    try:
        return root.children(recursive=True)
    except psutil.Error:
        return []


if __name__ == "__main__":
    figures = {
        "driver": driver, "query": query, "status": status, "overview": overview, "writer": writer, "engine": engine,
    }  # fmt: skip
    figures[sys.argv[1]]()
