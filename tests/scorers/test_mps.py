"""MPS against the network that imscore carries, and its published file, which is a pickle of a module."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import make_mps as parity
from parity.difference import as_originals_read, difference
from parity.make_image_reward import images
from support.original_mps import build, save_module

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.scorers import load_scorer
from sp_rerank.scorers.check import check_scorer
from sp_rerank.scorers.convert import convert, read_tensors
from sp_rerank.scorers.mps import MpsScorer, from_original

GOLDEN = json.loads(parity.GOLDEN.read_text(encoding="utf-8"))
OF: dict[str, Any] = {"name": "tiny", "source": "random weights", "license": "none", "heads": parity.HEADS}


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """The checkpoint's tensors in a small size."""
    return {key: torch.from_numpy(np.asarray(value)) for key, value in parity.as_used(GOLDEN["shapes"]).items()}


@pytest.fixture(scope="module")
def scorer(published: dict[str, torch.Tensor]) -> MpsScorer:
    return from_original(published, **OF)


def test_tokens_are_those_of_its_tokenizer(scorer: MpsScorer):
    assert scorer.tokenize(list(parity.PROMPTS.values())).tolist() == list(GOLDEN["ids"].values())


def test_scores_are_those_of_the_original_network(scorer: MpsScorer):
    pictures = [as_originals_read(image) for name, image in images().items() if name not in parity.LEFT_OUT]
    scores = torch.stack([scorer.score(prompt, pictures) for prompt in parity.PROMPTS.values()])
    expected = torch.tensor([list(row.values()) for row in GOLDEN["score"].values()])
    assert difference("mps", "imscore 0.0.11's network, the authors' steps", scores, expected) <= 1e-4


def test_the_threshold_counts(published: dict[str, torch.Tensor], scorer: MpsScorer):
    """.01, of the network's own forward, is another score than .3, of the evaluation."""
    other = from_original(published, **OF)
    other.register_to_config(threshold=0.01)
    pixels = torch.rand(2, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(scorer.score("a red lemon", pixels), other.score("a red lemon", pixels), atol=1e-3)


def test_it_keeps_the_rules_of_a_scorer(scorer: MpsScorer, tmp_path: Path):
    check_scorer(scorer)
    scorer.save_pretrained(tmp_path / "kept")
    again: Any = load_scorer(f"sp@{tmp_path / 'kept'}")
    pixels = torch.rand(2, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    assert again.name == scorer.name and torch.equal(again.score("a", pixels), scorer.score("a", pixels))
    assert (scorer.count_tokens("a lemon"), scorer.lost_tail("lemon " * 76)) == (4, "lemon")


def test_a_gradient_reaches_the_pixels(scorer: MpsScorer):
    pixels = torch.rand(2, 3, 60, 60, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scorer("a lemon", pixels, differentiable=True).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_a_copy_with_other_prefixes_is_the_same_scorer(published: dict[str, torch.Tensor], scorer: MpsScorer):
    copy = {f"mps.{key}": value for key, value in published.items()}
    assert from_original(copy, **OF).name == scorer.name


def test_what_does_not_fit_is_named(published: dict[str, torch.Tensor]):
    short = {key: value for key, value in published.items() if "to_kv" not in key}
    with pytest.raises(UsageError, match=r"tiny: expected an MPS checkpoint with cross\.0\.0\.to_kv\.weight"):
        from_original(short, **OF)
    with pytest.raises(UsageError, match="1 unexpected: momentum"):
        from_original(published | {"momentum": torch.zeros(1)}, **OF)


def test_a_module_is_read_by_its_tensors_alone(tmp_path: Path):
    module = build()
    save_module(module, tmp_path / "module.pth")
    tensors = read_tensors(tmp_path / "module.pth", of_module=True)
    expected = module.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_a_state_dict_of_it_is_read_too(tmp_path: Path):
    module = build()
    torch.save(module.state_dict(), tmp_path / "state.pth")
    assert read_tensors(tmp_path / "state.pth", of_module=True).keys() == module.state_dict().keys()


class Evil:
    def __init__(self, module: str, name: str, *arguments: Any):
        self.call = getattr(__import__(module), name), arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(("module", "name"), [("os", "mkdir"), ("shutil", "rmtree"), ("builtins", "exec")])
def test_code_in_a_module_does_not_run(module: str, name: str, tmp_path: Path):
    inside = tmp_path / "made"
    argument = {"mkdir": str(inside), "rmtree": str(tmp_path), "exec": f"import os; os.mkdir({str(inside)!r})"}[name]
    file = tmp_path / "MPS_overall_checkpoint.pth"
    torch.save({"model": Evil(module, name, argument), "weight": torch.zeros(1)}, file)
    with pytest.raises((UsageError, StorageError), match=r"MPS_overall_checkpoint\.pth: (refused|expected|damaged)"):
        convert(file, "mps", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]


def test_only_where_a_module_is_published_is_one_read(tmp_path: Path):
    save_module(build(), tmp_path / "ImageReward.pt")
    with pytest.raises(UsageError, match="refused"):
        read_tensors(tmp_path / "ImageReward.pt")
