"""What a person is told of a download before it starts, asked of a simulated hub by the hub's own client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.repository import ROOT
from support.single_files import save_single_file
from support.tiny import build_sd_pipeline


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    model = root / "owner" / "model"
    build_sd_pipeline().save_pretrained(model)
    build_sd_pipeline().save_pretrained(model, variant="fp16")
    (model / "whole.safetensors").write_bytes(b"\0" * 5_000_000)  # a second copy, as many repositories have it
    (model / "LICENSE_TAG").write_text("openrail")
    (root / "owner" / "lists").mkdir()
    (root / "owner" / "lists" / "prompts.txt").write_text("a lemon\na pear\n")
    closed = shutil.copytree(model, root / "owner" / "closed")
    (closed / "GATED").touch()
    return root


@pytest.fixture
def hub(repositories, tmp_path) -> Iterator[dict[str, str]]:
    """The environment of a process that talks to the simulated hub, with a cache of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "support.hub_server", str(repositories)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout
    address = server.stdout.readline().strip()
    try:
        yield {
            **environment, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "300", "HF_TOKEN": "",
        }  # fmt: skip
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def generate(hub: dict[str, str], folder: Path, model: str, *more: str) -> tuple[int, list[str]]:
    words = ["generate", "a lemon", "--model", model, "--scorer", "brightness", "-n", "1", "-k", "1", "--steps", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "sp_rerank", *words, "--device", "cpu", *more],
        env=hub, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


def test_size_and_license_are_said_before_a_download(hub, repositories, tmp_path):
    code, said = generate(hub, tmp_path, "owner/model")
    assert code == 0, said
    fetched = {file.name for file in (tmp_path / "home").rglob("snapshots/**/*.safetensors")}
    assert "diffusion_pytorch_model.safetensors" in fetched
    assert not {name for name in fetched if "fp16" in name or name == "whole.safetensors"}
    held = [file for file in (tmp_path / "home").rglob("snapshots/**/*") if file.is_file() and file.name != "README.md"]
    size = sum(file.stat().st_size for file in held) / 1e6
    assert said[0] == f"downloading owner/model: about {size:.1f} MB in {len(held)} files; license: openrail"
    code, said = generate(hub, tmp_path, "owner/model")
    assert code == 0
    assert not any("downloading" in line for line in said)  # it is in the cache
    code, said = generate({**hub, "HF_HUB_OFFLINE": "1"}, tmp_path, "owner/model")
    assert code == 0, said  # and is found there without the hub


def test_a_variant_is_fetched_alone(hub, tmp_path):
    code, said = generate(hub, tmp_path, "owner/model", "--variant", "fp16")
    assert code == 0, said
    assert said[0].startswith("downloading owner/model: about ")
    fetched = {file.name for file in (tmp_path / "home").rglob("snapshots/**/*.safetensors")}
    assert fetched == {"model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors"}


@pytest.mark.parametrize("token", ["", "hf_" + "x" * 34], ids=["none", "one without access"])
def test_a_hub_that_asks_for_a_token_is_one_line(hub, tmp_path, token):
    code, said = generate({**hub, "HF_TOKEN": token}, tmp_path, "owner/closed")
    assert code == 2
    assert said[-1].startswith(
        "error: owner/closed asks for a token: accept its terms on its page of the hub, then run"
    )
    assert len([line for line in said if "downloading" not in line]) == 1


def test_a_repository_that_is_not_there(hub, tmp_path):
    code, said = generate(hub, tmp_path, "owner/absent")
    assert code == 2
    assert "neither a folder here nor a repository of the hub that you have access to" in said[-1]


def test_of_the_base_of_a_file_only_the_configuration_is_fetched(hub, tmp_path):
    file = save_single_file(build_sd_pipeline(), tmp_path / "whole.safetensors")
    code, said = generate(hub, tmp_path, file.name, "--base", "owner/model")
    assert code == 0, said
    assert not list((tmp_path / "home").rglob("snapshots/**/*.safetensors"))


def read_list(hub: dict[str, str], place: str) -> list[str]:
    code = (
        "import sys\nfrom sp_rerank.batch.prompts import read_prompts\nfrom sp_rerank.errors import SpRerankError\n"
        "try:\n    print(*(row.prompt for row in read_prompts(sys.argv[1])), sep='\\n')\n"
        "except SpRerankError as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, place], env=hub, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_list_of_prompts_of_the_hub_is_fetched_once(hub):
    assert read_list(hub, "hf://datasets/owner/lists/prompts.txt") == ["a lemon", "a pear"]
    assert read_list({**hub, "HF_HUB_OFFLINE": "1"}, "hf://datasets/owner/lists/prompts.txt") == ["a lemon", "a pear"]


@pytest.mark.parametrize("place", ["owner/lists/other.txt", "owner/absent/prompts.txt", "owner/closed/prompts.txt"])
def test_a_list_that_the_hub_does_not_give_is_one_line(hub, place):
    (said,) = read_list(hub, f"hf://datasets/{place}")
    assert said.startswith(f"UsageError hf://datasets/{place}: no file of a data set that you have access to")


def test_a_list_of_the_hub_without_the_hub(hub):
    (said,) = read_list({**hub, "HF_HUB_OFFLINE": "1"}, "hf://datasets/owner/lists/prompts.txt")
    assert said.startswith("HubUnavailableError hf://datasets/owner/lists/prompts.txt")
