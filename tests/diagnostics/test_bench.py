"""What a bench reports, on runs so small that they show only that it measures; the figures are a machine's."""

import subprocess
import sys

import pytest
import torch
from support.doubles import SeededPipe

from sp_rerank.diagnostics import bench_generate, bench_host, bench_rank, timing
from sp_rerank.diagnostics.utilization import Watch, matmul_peak
from sp_rerank.generate import generate


def test_a_process_is_timed_and_its_complaint_passed_on():
    seconds, megabytes = timing.timed_process([
        sys.executable,
        "-c",
        "import time; time.sleep(0.2); b = b'x' * 60_000_000",
    ])
    assert 0.2 < seconds < 30
    assert megabytes > 60
    with pytest.raises(RuntimeError, match="no such luck"):
        timing.timed_process([sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_the_peak_of_memory_is_this_processes_own():
    before = timing.peak_memory()
    assert 10 < before < 20_000
    code = "from sp_rerank.diagnostics.timing import peak_memory; b = b'x' * 400_000_000; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 400 < float(done.stdout) < 600


def test_a_free_run_is_a_run(tmp_path):
    pipe, scorer, folder = bench_host.FreePipe(), bench_host.FreeScorer(), tmp_path / "run"
    result = generate("x", pipe=pipe, scorer=scorer, n=130, steps=1, batch_size=20, out=folder)
    assert (result.summary.made, len(list((folder / "images").iterdir()))) == (130, 130)
    assert len({entry.candidate.image.tobytes() for entry in result}) > 1


def test_host_reports_both_sizes(monkeypatch):
    costs = {40: {"ms": 2.0, "kB": 10.0}, 160: {"ms": 2.5, "kB": 11.0}}
    monkeypatch.setattr(bench_host, "_in_a_process", costs.__getitem__)
    said = []
    found = bench_host.compare_host(40, 4, 2, said.append)
    assert found["a candidate of 160 / one of 40"] == 1.25
    assert found["n = 40, ms of CPU a candidate"] == 2.0
    assert len(said) == 4


def test_rank_reports_speed_and_memory(monkeypatch):
    monkeypatch.setattr(bench_rank, "SIDE", 16)
    monkeypatch.setattr(bench_rank, "MANY", (5, 20))
    monkeypatch.setattr(bench_rank, "_peak_of", lambda folder, count: float(len(list(folder.iterdir())) + count))
    found = bench_rank.compare_rank(18, 1, str)
    assert found["one thread / as many as CPUs"] > 0
    assert found["peak memory of 20 files, MB"] == 40


@pytest.mark.parametrize("way", bench_generate.WAYS)
def test_the_ways_of_generate_are_programs(way, tmp_path):
    script = bench_generate.script_of(way, 12, "mini", "cpu", str(tmp_path / "run"))
    compile(script, way, "exec")
    assert ("torch.compile" in script) == (way == bench_generate.COMPILED)
    assert ("search='fast'" in script) == (way == bench_generate.FAST)


def test_a_way_that_cannot_be_compiled_is_left_out(monkeypatch):
    def measured(script):
        if "torch.compile" in script:
            raise RuntimeError("failed:\nno compiler")
        ours = "import generate" in script
        return {"startup": 1.0, "work": 4.0 if ours else 3.0, "peak": 5, "shown": ["share"], "share": 0.5}

    monkeypatch.setattr(bench_generate, "_measured", measured)
    said = []
    found = bench_generate.compare_generate(10, 2, said.append)
    assert "compiled loop: left out, no compiler" in said
    assert found["batched loop / sp-rerank"] == 0.75
    assert not any("compiled" in key for key in found)
    assert found["share"] == 0.5


def test_a_watch_counts_the_arithmetic_of_every_call():
    class Pipe(SeededPipe):
        def __init__(self):
            super().__init__()
            self.unet = torch.nn.Linear(64, 32, bias=False)
            self.vae = torch.nn.Identity()
            self.vae.decode = lambda latents: latents

    pipe = Pipe()
    plain, watch = pipe.unet.forward, Watch(pipe)
    with torch.no_grad():
        for rows in (2, 2, 5):
            pipe.unet(torch.rand(rows, 64))
    assert watch._calls.count_flops() == 2 * 64 * 32 * 9
    shares = watch.shares()
    assert set(shares) == {"denoiser, share of the time", "denoiser, share of the matmul peak"}
    assert 0 < shares["denoiser, share of the time"] <= 1
    assert pipe.unet.forward == plain
    assert Watch(pipe).shares() == {}
    assert matmul_peak(torch.device("cpu"), torch.float32) > 1e8
