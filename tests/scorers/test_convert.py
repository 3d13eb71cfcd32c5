"""Published files of every form, small and random: converted, refused, found again by name."""

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import safetensors.torch
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from transformers import BlipConfig, BlipForImageTextRetrieval

from sp_rerank.errors import HubUnavailableError, SpRerankError, StorageError, UsageError
from sp_rerank.scorers import convert as convert_module
from sp_rerank.scorers import load_scorer
from sp_rerank.scorers.check import check_scorer
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.convert import checkpoint_name, convert, read_tensors
from sp_rerank.scorers.preprocess import Preprocess
from sp_rerank.scorers.published import PUBLISHED, find
from sp_rerank.storage.hub import fetch_file

WEIGHTS = "diffusion_pytorch_model.safetensors"

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 16, "head_width": 8, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, no hub; whatever open_clip is asked for is the tiny architecture."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(open_clip, "get_model_config", lambda architecture: TINY)
    return tmp_path / "assets" / "sp_rerank" / "scorers"


@pytest.fixture(scope="module")
def original() -> DualEncoder:
    torch.manual_seed(0)
    encoder = DualEncoder(
        name="original", preprocess=Preprocess(224).to_dict(), score_scale="cosine", license="", source="", **TINY
    )
    return encoder.eval()


@pytest.fixture
def state(original: DualEncoder) -> State:
    return {key: value.clone() for key, value in original.clip.state_dict().items()}


@pytest.fixture
def checkpoint(state: State, tmp_path: Path) -> Path:
    torch.save({"state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    return tmp_path / "HPS_v2.1_compressed.pt"


def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def old_format(state: State, file: Path) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=False)


def with_facts(state: State, file: Path) -> None:
    """As OpenAI's file has it."""
    facts = {key: torch.tensor(77) for key in ("input_resolution", "context_length", "vocab_size")}
    torch.save(state | facts, file)


FORMS: dict[str, Callable[[State, Path], object]] = {
    "bare": torch.save,
    "under state_dict": lambda state, file: torch.save({"epoch": 3, "state_dict": state}, file),
    "of a distributed training": lambda state, file: torch.save({f"module.{k}": v for k, v in state.items()}, file),
    "with OpenAI's facts": with_facts,
    "before zip archives": old_format,
    "safetensors": safetensors.torch.save_file,
    "scale in a list": lambda state, file: torch.save(state | {"logit_scale": state["logit_scale"][None]}, file),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_scorer(form: str, original: DualEncoder, state: State, tmp_path: Path):
    FORMS[form](state, tmp_path / "any.name")
    scorer: Any = load_scorer(f"sp@{convert(tmp_path / 'any.name', 'clip-l')}")
    assert torch.equal(scorer.score("a lemon", images()), original.score("a lemon", images()))


def test_what_a_converted_folder_holds(checkpoint: Path, cache: Path):
    folder = convert(checkpoint, "hps-v2.1")
    assert folder == cache / "hps-v2.1"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "hps-v2.1"]
    config = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert config["source"] == f"HPS_v2.1_compressed.pt, sha256 {digest}"
    assert (config["name"], config["license"], config["score_scale"]) == ("hps-v2.1", "Apache-2.0", "cosine")
    assert config["preprocess"]["geometry"] == "longest_edge_pad"
    assert config["quick_gelu"] is True


def test_the_name_is_told_without_loading(checkpoint: Path):
    assert checkpoint_name(convert(checkpoint, "hps-v2.1")) == load_scorer("hps-v2.1").name


def test_the_precision_of_the_file_is_kept_and_loaded_as_float32(state: State, tmp_path: Path):
    halves = {key: value.half() for key, value in state.items()}
    torch.save(halves, tmp_path / "half.pt")
    stored = safetensors.torch.load_file(convert(tmp_path / "half.pt", "hps-v1") / WEIGHTS)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert torch.equal(stored["clip.visual.proj"], halves["visual.proj"])
    scorer: Any = load_scorer("hps-v1")
    assert scorer.dtype == torch.float32


def test_a_converted_scorer_keeps_the_contract(checkpoint: Path):
    convert(checkpoint, "hps-v2.1")
    check_scorer(load_scorer("hps-v2.1"))


def test_the_same_file_is_converted_once_and_another_replaces_it(checkpoint: Path, state: State, cache: Path):
    folder = convert(checkpoint, "hps-v2.1")
    written = (folder / WEIGHTS).stat().st_mtime_ns
    assert convert(checkpoint, "hps-v2.1") == folder
    assert (folder / WEIGHTS).stat().st_mtime_ns == written
    torch.save(state | {"logit_scale": torch.tensor(1.0)}, checkpoint)
    assert convert(checkpoint, "hps-v2.1") == folder
    assert safetensors.torch.load_file(folder / WEIGHTS)["clip.logit_scale"] == 1
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "hps-v2.1"]


def test_a_folder_of_ones_own_is_written(checkpoint: Path, tmp_path: Path, cache: Path):
    folder = convert(checkpoint, "hps-v2.1", out=tmp_path / "deep" / "mine")
    assert folder == tmp_path / "deep" / "mine"
    assert load_scorer(f"sp@{folder}").name.startswith("hps-v2.1@")
    assert checkpoint_name(convert(checkpoint, "hps-v2", out=folder)).startswith("hps-v2@")
    assert not cache.exists()


def test_an_empty_folder_is_filled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert checkpoint_name(convert(checkpoint, "hps-v2.1", out=Path())).startswith("hps-v2.1@")


def test_a_folder_of_other_things_is_not_replaced(checkpoint: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="a scorer's folder to replace, found another"):
        convert(checkpoint, "hps-v2.1", out=tmp_path / "photos")
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"x"


def test_a_disk_that_cannot_be_written_leaves_nothing(checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sp_rerank.storage.atomic.os.fsync", fail)
    with pytest.raises(StorageError, match=r"No space left.*free some space"):
        convert(checkpoint, "hps-v2.1")
    assert [path.name for path in cache.iterdir()] == [".lock"]


class Exploit:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def without(name: str) -> Callable[[State, Path], object]:
    return lambda state, file: torch.save({key: value for key, value in state.items() if key != name}, file)


def cut_short(save: Callable[[State, Path], object], by: int) -> Callable[[State, Path], object]:
    def write(state: State, file: Path) -> None:
        save(state, file)
        file.write_bytes(file.read_bytes()[:-by])

    return write


BAD: dict[str, tuple[Callable[[State, Path], object], type[SpRerankError], str]] = {
    "pickle that runs code": (
        lambda state, file: file.write_bytes(pickle.dumps(Exploit(file.with_name("marker")))), UsageError, "refused",
    ),
    "state dict that runs code": (
        lambda state, file: torch.save({"a": Exploit(file.with_name("marker"))}, file), UsageError, "refused",
    ),
    "list": (lambda state, file: torch.save([1, 2], file), UsageError, "expected a state dict.*got a list"),
    "empty dict": (lambda state, file: torch.save({}, file), UsageError, "expected a state dict"),
    "dict of numbers": (lambda state, file: torch.save({"a": 1}, file), UsageError, "expected a state dict"),
    "text": (lambda state, file: file.write_text("<!DOCTYPE html>"), UsageError, "refused"),
    "empty file": (lambda state, file: file.touch(), StorageError, "damaged.*fetch it again"),
    "truncated archive": (cut_short(torch.save, 5000), StorageError, "damaged.*fetch it again"),
    "truncated old pickle": (cut_short(old_format, 5000), StorageError, "damaged.*fetch it again"),
    "truncated safetensors": (cut_short(safetensors.torch.save_file, 9), StorageError, "damaged.*fetch it again"),
    "TorchScript": (
        lambda state, file: torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)).save(str(file)),
        UsageError, "TorchScript",
    ),
    "missing tensor": (without("ln_final.bias"), UsageError, "those of ViT-H-14, which .* 1 missing: ln_final.bias"),
    "further tensor": (
        lambda state, file: torch.save(state | {"head": torch.ones(1)}, file), UsageError, "1 unexpected: head",
    ),
    "another architecture": (
        lambda state, file: torch.save(state | {"visual.proj": torch.ones(9, 16)}, file),
        UsageError, r"1 of another shape: visual.proj \(9, 16\) for \(16, 16\)",
    ),
    "names of transformers": (
        lambda state, file: torch.save({"text_model.final_layer_norm.bias": torch.ones(1)}, file),
        UsageError, "1 unexpected: text_model.final_layer_norm.bias",
    ),
    "folder": (lambda state, file: file.mkdir(), UsageError, "expected HPS_v2.1_compressed.pt of hps-v2.1, a file"),
    "nothing": (lambda state, file: None, StorageError, "cannot be read: No such file"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_an_error_and_leaves_nothing(fault: str, state: State, tmp_path: Path, cache: Path):
    write, kind, said = BAD[fault]
    file = tmp_path / "bad.pt"
    write(state, file)
    with pytest.raises(kind, match=said) as caught:
        convert(file, "hps-v2.1")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()
    assert not cache.exists() or not list(cache.iterdir())


def test_an_unknown_name_is_answered_with_what_there_is(checkpoint: Path):
    with pytest.raises(UsageError, match=r"image-reward.*clip:ARCH/TAG, got 'hps-v21'; did you mean 'hps-v2.1'"):
        convert(checkpoint, "hps-v21")


def test_a_file_of_another_length_or_hash_is_not_the_published_one(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    row = PUBLISHED["hps-v2.1"]
    monkeypatch.setitem(PUBLISHED, "hps-v2.1", replace(row, length=7))
    with pytest.raises(UsageError, match=r"expected HPS_v2.1_compressed.pt of hps-v2.1, 7 bytes, found"):
        convert(checkpoint, "hps-v2.1")
    monkeypatch.setitem(PUBLISHED, "hps-v2.1", replace(row, sha256="0" * 64))
    with pytest.raises(StorageError, match="expected the SHA-256 0000"):
        convert(checkpoint, "hps-v2.1")
    monkeypatch.setattr(convert_module, "_LARGEST_NETWORK", 1000)
    with pytest.raises(UsageError, match="at most 1000 bytes"):
        convert(checkpoint, "hps-v2")
    assert not cache.exists()


def put_in_hub_cache(file: Path, hub: Path, repo: str, commit: str) -> None:
    folder = hub / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
    folder.mkdir(parents=True)
    file.replace(folder / file.name)


def test_a_file_in_the_hubs_cache_is_converted_when_it_is_asked_for(checkpoint: Path, tmp_path: Path, cache: Path):
    row = PUBLISHED["hps-v2.1"]
    assert row.revision is not None
    assert not row.is_here()
    put_in_hub_cache(checkpoint, tmp_path / "hub", row.repo, row.revision)
    assert row.is_here()
    assert not row.is_converted()
    scorer: Any = load_scorer("hps-v2.1", dtype=torch.bfloat16)
    assert scorer.dtype == torch.bfloat16
    assert scorer.config["source"].startswith(f"xswu/HPSv2@{row.revision}/HPS_v2.1_compressed.pt, sha256 ")
    assert row.is_converted()
    assert load_scorer("hps-v2.1").name == scorer.name


def test_of_several_files_the_first_that_the_hub_has_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def download(repo: str, file: str, *, revision: str | None, local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        if file != "good.bin":
            raise EntryNotFoundError(f"no {file} in {repo}")
        return str(tmp_path / "snapshots" / (revision or "b" * 40) / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: ModelInfo(id="a/b", sha="b" * 40))
    file, commit = fetch_file("owner/name", ["good.safetensors", "good.bin"])
    assert (file.name, commit) == ("good.bin", "b" * 40)
    with pytest.raises(UsageError, match="expected a file a or b, found none"):
        fetch_file("owner/name", ["a", "b"])


@pytest.mark.parametrize("name", [row.name for row in PUBLISHED.values() if row.repo])
def test_without_the_hub_one_is_told_which_file_to_download(name: str):
    row = PUBLISHED[name]
    command = f"hf download {row.repo} {row.files[0]} --revision {row.revision}"
    with pytest.raises(HubUnavailableError, match=command):
        load_scorer(name)


@pytest.mark.parametrize("name", [row.name for row in PUBLISHED.values() if not row.repo])
def test_of_a_file_on_no_hub_one_is_told_where_it_is(name: str):
    with pytest.raises(HubUnavailableError, match=r"https://github.com/.*scorers convert \S+ --as " + name):
        load_scorer(name)


def test_revisions_and_hashes_in_the_table_are_whole():
    for row in PUBLISHED.values():
        commits = [row.revision, row.vocabulary[1] if row.vocabulary else None]
        assert all(commit is None or len(bytes.fromhex(commit)) == 20 for commit in commits), row.name
        assert len(bytes.fromhex(row.sha256)) in (0, 32), row.name
        assert bool(row.repo) != bool(row.url), row.name


def test_any_checkpoint_of_open_clip_is_known_by_name(
    state: State, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    put_in_hub_cache(
        tmp_path / "open_clip_pytorch_model.bin", tmp_path / "hub", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "a" * 40
    )
    refs = tmp_path / "hub" / "models--laion--CLIP-ViT-B-16-laion2B-s34B-b88K" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    scorer: Any = load_scorer("clip:ViT-B-16/laion2b_s34b_b88k")
    assert scorer.name.startswith("clip:ViT-B-16/laion2b_s34b_b88k@")
    assert "aaaa/open_clip_pytorch_model.bin" in scorer.config["source"]
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "clip--ViT-B-16--laion2b_s34b_b88k"]
    assert load_scorer("clip:ViT-B-16/laion2b_s34b_b88k").name == scorer.name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip:ViT-B-16/laion3b", "tags of 'ViT-B-16': openai, "),
        ("clip:ViT-Q-16/openai", "no such architecture"),
        ("clip:", "no such architecture"),
        ("clip:convnext_base/laion400m_s13b_b51k", "timm_"),
        ("clip:ViT-H-14/dfn5b", "squash"),
    ],
)
def test_what_open_clip_cannot_build_itself_is_refused(name: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    with pytest.raises(UsageError, match=said):
        load_scorer(name)


def test_the_activation_is_that_of_the_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for name, architecture in (
        ("clip:ViT-L-14/openai", "ViT-L-14-quickgelu"),
        ("clip:ViT-L-14-quickgelu/openai", "ViT-L-14-quickgelu"),
        ("clip:ViT-H-14/laion2b_s32b_b79k", "ViT-H-14"),
    ):
        row = find(name)
        assert row is not None
        assert row.architecture == architecture
        assert open_clip.get_model_config(architecture) is not None


def test_an_aesthetic_head_is_put_on_clip_l(state: State, original: DualEncoder, tmp_path: Path):
    head = tmp_path / "sa_0_4_vit_l_14_linear.pth"
    torch.save({"weight": torch.ones(1, 16), "bias": torch.zeros(1)}, head)
    with pytest.raises(HubUnavailableError, match=r"hf download timm/vit_large_patch14_clip_224.openai"):
        convert(head, "aesthetic-v1")
    safetensors.torch.save_file(state, tmp_path / "open_clip_model.safetensors")
    convert(tmp_path / "open_clip_model.safetensors", "clip-l")
    convert(head, "aesthetic-v1")
    with torch.no_grad():
        expected = original.encode_image(images()).sum(dim=1)
    torch.testing.assert_close(load_scorer("aesthetic-v1").score("", images()), expected, rtol=0, atol=1e-5)


def test_a_head_of_another_network_is_refused(checkpoint: Path):
    with pytest.raises(SpRerankError):
        convert(checkpoint, "aesthetic-v1")


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    """As Salesforce/blip-itm-large-coco is stored: model.safetensors beside vocab.txt."""
    torch.manual_seed(0)
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**tower, "vocab_size": 9, "encoder_hidden_size": 64, "max_position_embeddings": 40, "projection_dim": 8}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8)
    BlipForImageTextRetrieval(config).save_pretrained(tmp_path / "blip")
    (tmp_path / "blip" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n\u2028\n")
    return tmp_path / "blip" / "model.safetensors"


def test_blip_is_converted_with_the_vocabulary_beside_it(blip: Path):
    folder = convert(blip, "blip-itm")
    config = json.loads((folder / "config.json").read_text())
    assert config["vocabulary"][-4:] == ["a", "\u2028", "[DEC]", "[ENC]"]
    assert load_scorer("blip-itm").score("a", images()).isfinite().all()


def test_blip_without_a_vocabulary_asks_for_it(blip: Path):
    blip.with_name("vocab.txt").unlink()
    with pytest.raises(HubUnavailableError, match=r"hf download Salesforce/blip-itm-large-coco vocab.txt"):
        convert(blip, "blip-itm")


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path):
    file = tmp_path / "HPS_v2.1_compressed.pt"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1972000000\n")
    with pytest.raises(UsageError, match=r"is a git-lfs pointer.*git lfs pull"):
        convert(file, "hps-v2.1")


def test_an_old_tar_archive_is_refused_without_advice_to_open_it_all_the_same(tmp_path: Path):
    file = tmp_path / "old.pt"
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UsageError, match="tar archive of pickles") as caught:
        read_tensors(file)
    assert "weights_only" not in str(caught.value)
