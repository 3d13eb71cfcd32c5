"""Every published scorer against its original, from an image file on the disk to the score."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from parity import make_image_reward as parity
from parity.difference import difference
from support import original_mps, originals
from support.originals import Original
from support.pictures import picture

from sp_rerank.rank import rank_files
from sp_rerank.scorers import load_scorer
from sp_rerank.scorers.convert import convert
from sp_rerank.scorers.published import PUBLISHED

PROMPTS = [*(parity.PROMPTS[key] for key in ("plain", "emoji", "empty")), "a “lemon” &amp; a cat’s ｌｅｍｏｎ"]

ORIGINALS: dict[str, tuple[str, Callable[[Path], Original]]] = {
    "clip-l": ("open_clip 3.3", partial(originals.clip_of_open_clip, quick_gelu=True)),
    "clip-h": ("open_clip 3.3", partial(originals.clip_of_open_clip, quick_gelu=False)),
    "hps-v1": ("openai/CLIP's transform, open_clip's network", originals.hps_v1),
    "hps-v2": ("hpsv2x 1.2.0's transform, open_clip's network", originals.hps_v2),
    "hps-v2.1": ("hpsv2x 1.2.0's transform, open_clip's network", originals.hps_v2),
    "pickscore": ("transformers' CLIPProcessor and CLIPModel", originals.pick_score),
    "image-reward": ("image-reward 1.5, transcribed", originals.image_reward),
    "blip-itm": ("BLIP's transform, transformers' network", originals.blip_itm),
    "cycle-reward": ("cyclereward 0.1.7, transcribed", originals.cycle_reward),
    "cycle-reward-t2i": ("cyclereward 0.1.7, transcribed", originals.cycle_reward),
    "mps": ("Kwai-Kolors/MPS, transcribed; transformers' towers and processor", original_mps.mps),
    "aesthetic-v1": ("open_clip 3.3 and the head", partial(originals.aesthetic, version=1)),
    "aesthetic-v2": ("openai/CLIP's transform and the head", partial(originals.aesthetic, version=2)),
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """PNG and JPEG, color and gray, wide and high, smaller and larger than the network's input."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (kind, mode, *size) in enumerate((
        (".png", "RGB", 640, 427), (".jpg", "RGB", 427, 640), (".png", "L", 513, 512), (".jpg", "L", 335, 224),
        (".png", "RGB", 101, 200), (".png", "RGB", 224, 224), (".jpg", "RGB", 1337, 711), (".png", "RGB", 63, 65),
    )):  # fmt: skip
        picture("photo", *size, seed=number).convert(mode).save(folder / f"{number}{kind}")
    return sorted(folder.iterdir())


def load_published(name: str, write: Callable[..., Original], folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The original, and our scorer of the checkpoint that it wrote, converted as a user would."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(folder / "assets"))
    for row in PUBLISHED.values():
        gelu = "quickgelu" if "quickgelu" in row.architecture else "gelu"
        small = replace(row, length=None, sha256="", architecture=row.architecture and f"tiny-parity-{gelu}")
        monkeypatch.setitem(PUBLISHED, row.name, small)
    file = folder / PUBLISHED[name].files[0]
    if name.startswith("aesthetic"):
        clip = folder / PUBLISHED["clip-l"].files[0]
        write = partial(write, clip=clip)
        original = write(file)
        convert(clip, "clip-l")
    else:
        original = write(file)
    convert(file, name)
    return original, load_scorer(name)


def test_every_published_scorer_has_its_original():
    assert ORIGINALS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_file_has_the_score_that_its_original_gives(
    name: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    label, write = ORIGINALS[name]
    theirs, ours = load_published(name, write, tmp_path, monkeypatch)
    found = []
    for prompt in PROMPTS:
        ranking = rank_files([ours], prompt, files)
        by_file = {row.file: row.scores[ours.name] for row in ranking.files}
        found.append([by_file[file] for file in files])
    expected = [[theirs(prompt, file) for file in files] for prompt in PROMPTS]
    assert np.std(expected, axis=1).min() > 1e-4  # images differ, for each prompt
    assert difference(name, f"{label}, from the file", found, expected) <= 1e-4


def test_the_transcription_of_image_reward_gives_the_rewards_of_the_original():
    golden = json.loads(parity.GOLDEN.read_text(encoding="utf-8"))
    state = {key: torch.from_numpy(value) for key, value in parity.weights(golden["shapes"]).items()}
    blip = {key.removeprefix("blip."): value for key, value in state.items()}
    ids = torch.tensor(list(golden["ids"].values()))
    rewards = []
    for image in map(parity.without_difference, parity.images().values()):
        seen = originals.look(blip, originals.CLIP_TRANSFORM(image)[None], 16).expand(len(ids), -1, -1)
        features = originals.read(blip, ids, ids != 0, seen, 16)[:, 0]
        rewards.append(originals.reward(state, features))
    expected = torch.tensor([list(row.values()) for row in golden["reward"].values()]).T
    assert difference("the transcription", "image-reward 1.5", torch.stack(rewards), expected) <= 1e-4
