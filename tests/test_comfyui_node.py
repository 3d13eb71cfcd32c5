"""The node for ComfyUI on the protocol of its nodes: loaded, asked and called as ComfyUI does, without ComfyUI."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from support.repository import ROOT

from sp_rerank import NothingUsableError, UsageError, load_scorer

FOLDER = ROOT / "examples" / "comfyui"


@pytest.fixture(scope="module")
def package() -> Iterator[ModuleType]:
    """The folder as ComfyUI's `load_custom_node` imports it: a package under a name made of its path."""
    name = str(FOLDER).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for loaded in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[loaded]


def execute(package: ModuleType, **given: Any) -> dict[str, Any]:
    """Check the inputs against INPUT_TYPES and call the node's FUNCTION, as ComfyUI's executor does."""
    (kind,) = package.NODE_CLASS_MAPPINGS.values()
    inputs = kind.INPUT_TYPES()["required"]
    assert set(given) == set(inputs)
    for name, (accepted, *rules) in inputs.items():
        if isinstance(accepted, list):
            assert given[name] in accepted, f"Value not in list: {name}"
        elif accepted == "INT":
            assert rules[0]["min"] <= given[name] <= rules[0]["max"]
    outputs = getattr(kind(), kind.FUNCTION)(**given)
    assert isinstance(outputs, tuple)
    assert len(outputs) == len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES) == len(kind.OUTPUT_IS_LIST)
    return dict(zip(kind.RETURN_NAMES, outputs, strict=True))


def gray(*levels: float, channels: int = 3) -> torch.Tensor:
    """(b, 6, 5, c), each image of one level."""
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 6, 5, channels).clone()


def test_the_node_declares_what_comfyui_asks_for(package):
    (name,) = package.NODE_CLASS_MAPPINGS
    assert set(package.NODE_DISPLAY_NAME_MAPPINGS) == {name}
    kind = package.NODE_CLASS_MAPPINGS[name]
    assert kind.RETURN_TYPES == ("IMAGE", "FLOAT")
    assert callable(getattr(kind, kind.FUNCTION))
    types = {key: value[0] for key, value in kind.INPUT_TYPES()["required"].items()}
    assert (types["images"], types["prompt"], types["k"]) == ("IMAGE", "STRING", "INT")
    assert {"hps-v2.1", "clip-mini", "sp"} <= set(types["scorer"])
    assert kind.INPUT_TYPES()["required"]["scorer"][1]["default"] in types["scorer"]


def test_the_best_come_first_and_untouched(package):
    images = gray(0.2, 0.9, 0.5, *[0.1] * 9)
    before = images.clone()
    out = execute(package, images=images, prompt="a lemon", scorer="brightness", k=2)
    assert torch.equal(out["images"], before[[1, 2]])
    assert torch.equal(images, before)
    assert out["scores"] == pytest.approx([0.9, 0.5], abs=1e-6)


def test_more_than_there_are_is_all(package):
    out = execute(package, images=gray(0.2, 0.9), prompt="a lemon", scorer="brightness", k=9)
    assert len(out["images"]) == len(out["scores"]) == 2


def test_the_scores_are_the_scorer_s(package):
    images = torch.rand(3, 64, 48, 3, generator=torch.Generator().manual_seed(1))
    out = execute(package, images=images, prompt="a lemon", scorer="clip-mini", k=3)
    expected = load_scorer("clip-mini").score("a lemon", images.permute(0, 3, 1, 2)).sort(descending=True).values
    assert out["scores"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_transparency_lies_on_white(package):
    images = gray(0.5, 0.0, channels=4)
    images[0, ..., 3], images[1, ..., 3] = 1, 0  # gray, and nothing at all
    out = execute(package, images=images, prompt="a lemon", scorer="brightness", k=1)
    assert out["scores"] == pytest.approx([1.0])
    assert out["images"].shape == (1, 6, 5, 4)


@pytest.mark.parametrize(
    ("images", "prompt", "words"),
    [
        (gray(0.5).permute(0, 3, 1, 2), "a lemon", r"expected \(b, h, w, 3\)"),
        (gray(0.5)[0], "a lemon", r"expected \(b, h, w, 3\)"),
        (gray(0.5)[:0], "a lemon", r"expected \(b, h, w, 3\)"),
        (gray(0.5), " \n", "the prompt is empty"),
    ],
)
def test_what_cannot_be_ranked_is_said(package, images, prompt, words):
    with pytest.raises(UsageError, match=words):
        execute(package, images=images, prompt=prompt, scorer="brightness", k=1)


def test_no_finite_score_is_an_error(package, monkeypatch):
    from sp_rerank.scorers.brightness import BrightnessScorer

    monkeypatch.setattr(BrightnessScorer, "score", lambda _, __, images: torch.full((len(images),), torch.nan))
    with pytest.raises(NothingUsableError, match="no finite score"):
        execute(package, images=gray(0.5), prompt="a lemon", scorer="brightness", k=1)
