"""python tests/parity/full_size.py [hps-v1 hps-v2.1 pickscore blip-itm]

The architectures in their full size, once: random weights in the published file's format, converted and loaded by the
command line, two images scored. Shows that names, shapes and memory fit. A minute and 10 GB of disk each, no network.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import open_clip
import safetensors.torch
import torch
from PIL import Image
from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPConfig, CLIPModel

from sp_rerank.diagnostics.timing import timed_process
from sp_rerank.scorers.published import PUBLISHED

HEADER = "| scorer | parameters | file | convert | load and score two images |\n|---|---|---|---|---|"
VIT_H = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "hidden_act": "gelu", "projection_dim": 1024,
    },
    "vision_config": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32,
        "patch_size": 14, "hidden_act": "gelu", "projection_dim": 1024,
    },
}  # fmt: skip
"""The configuration of laion/CLIP-ViT-H-14-laion2B-s32B-b79K and of PickScore."""
BLIP_LARGE = {
    "text_config": {"vocab_size": 30524, "encoder_hidden_size": 1024},
    "vision_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 384,
    },
}  # fmt: skip


def network(name: str) -> torch.nn.Module:
    """The original's network with random weights."""
    if name == "pickscore":
        return CLIPModel(CLIPConfig(**VIT_H))
    if name == "blip-itm":
        return BlipForImageTextRetrieval(BlipConfig(**BLIP_LARGE))
    return open_clip.create_model(PUBLISHED[name].architecture, precision="fp16")


def write(name: str, folder: Path) -> None:
    """The published file."""
    file = folder / PUBLISHED[name].files[0]
    state = {key: value.contiguous() for key, value in network(name).state_dict().items()}
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save({"state_dict": state}, file)
    if name == "blip-itm":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "lemon"]
        words = [*special, *(f"word{i}" for i in range(30522 - len(special)))]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    print(sum(value.numel() for value in state.values()))


def line(name: str) -> str:
    """A row of the table."""
    command = [sys.executable, "-m", "sp_rerank"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        for shade in (60, 190):
            Image.effect_noise((512, 512), shade).save(folder / "images" / f"{shade}.png")
        # In a process of its own: a child's peak memory counts from what its parent has.
        written = subprocess.run([sys.executable, __file__, "write", name, scratch], capture_output=True, check=True)
        parameters, file = int(written.stdout), folder / PUBLISHED[name].files[0]
        size, converted = file.stat().st_size, str(folder / "converted")
        convert = timed_process([*command, "scorers", "convert", str(file), "--as", name, "--out", converted])
        file.unlink()
        score = timed_process([
            *command,
            "rank",
            str(folder / "images"),
            "--prompt",
            "a lemon",
            "--scorer",
            f"sp@{converted}",
        ])
        kept = json.loads((folder / "converted" / "config.json").read_text())["name"]
        cells = [f"{seconds:.0f} s, {megabytes / 1e3:.1f} GB" for seconds, megabytes in (convert, score)]
        return f"| {kept} | {parameters / 1e6:.0f} M | {size / 1e9:.1f} GB | {cells[0]} | {cells[1]} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], Path(sys.argv[3]))
    else:
        print(HEADER)
        for each in sys.argv[1:] or ("hps-v1", "hps-v2.1", "pickscore", "blip-itm"):
            print(line(each), flush=True)
