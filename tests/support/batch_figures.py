"""python -m support.batch_figures driver|query|status|writer|engine: the figures of docs/reports/batches.md, in tests/.

driver   memory that the driver of 100,000 prompts takes, with workers that make nothing
query    seconds for the best of each of 10,000 prompts with 100 candidates
status   seconds for the status of 10,000 units
writer   how long a denoiser that takes no CPU waits for the encoding of 96 images of 512 pixels
engine   CPU seconds of one process and of an engine's, for 12 prompts of the mini model
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    """10,000 units of 100 candidates with two scorers and one kept image, written by the code that batches use."""
    import io

    import numpy as np
    from PIL import Image

    from sp_rerank.batch.agreement import compare_batch
    from sp_rerank.batch.batch_config import BatchConfig, without_prompt
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.batch.overview import batch_overview
    from sp_rerank.batch.prompts import rows_of
    from sp_rerank.batch.units import Unit, encode, key_of
    from sp_rerank.run.records import Row
    from support.runs import run_config, summary_of

    units, n, rng = int(os.environ.get("UNITS", "10000")), 100, np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(file, "PNG")
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        config = run_config(n, scorers=("first", "second"))
        ledger.join(BatchConfig(without_prompt(config), 1, False, False, "top", "png", 1))
        rows = list(rows_of(f"a photo of object {number} on a table" for number in range(units)))
        ledger.add_prompts(rows)
        cpu = time.process_time()
        for row in rows:
            first = rng.random(n)
            second = 0.5 * first + 0.5 * rng.random(n)
            made = [
                Row(i, i, "ok", {"first": a, "second": b}, "0" * 64, 3, 2)
                for i, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True))
            ]
            best = int(first.argmax())
            unit = Unit(
                row, "ok", config, made, dict(enumerate(first.tolist())), summary_of(best, n=n),
                {best: file.getvalue()}, "cpu",
            )  # fmt: skip
            path = Path(folder) / key_of(row.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(unit))  # as the store does, without waiting for the disk
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
        for name, words in ways.items():
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            subprocess.run(words, cwd=folder, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{name}: {cpu:.1f} s of CPU, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    figures = {
        "driver": driver, "query": query, "status": status, "overview": overview, "writer": writer, "engine": engine,
    }  # fmt: skip
    figures[sys.argv[1]]()
