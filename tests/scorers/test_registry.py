import re
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import huggingface_hub.constants
import pytest
import torch

from sp_rerank.errors import HubUnavailableError, StorageError, UsageError
from sp_rerank.scorers import available_scorers, load_scorer, registry, resolve_sp
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.check import check_scorer
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.published import PUBLISHED
from sp_rerank.stats.ranking import order
from sp_rerank.types import Scorer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No checkpoint in the environment, no hub, an empty cache."""
    monkeypatch.delenv("SP_RERANK_CHECKPOINT", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture
def never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt is made again after a while."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited for {seconds} s"))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An installed package with two scorers; the module of the second lacks an import."""
    site = tmp_path / "site"
    info = site / "our_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: our-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sp_rerank.scorers]\nour-scorer = our_plugin:build\nbrightness = our_plugin:build\nbroken = no_such_module:x\n"
        "raises = our_plugin:raises\nnothing = our_plugin:nothing\n"
    )
    (site / "our_plugin.py").write_text(
        dedent("""
            from sp_rerank.scorers.brightness import BrightnessScorer

            class OurScorer(BrightnessScorer):
                name = "ours"

            def build(device, dtype):
                return OurScorer()

            def raises(device, dtype):
                raise KeyError("weights")

            def nothing(device, dtype):
                return None
        """)
    )
    monkeypatch.syspath_prepend(site)
    return site


def test_importing_the_registry_is_cheap():
    heavy = "{'torch', 'scipy', 'diffusers', 'open_clip', 'huggingface_hub'}"
    code = f"import sys, sp_rerank.scorers; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_every_scorer_of_the_papers_tables_has_a_row(tmp_path: Path):
    table = {entry.name: entry for entry in available_scorers()}
    names = ("clip-l", "clip-h", "hps-v1", "hps-v2", "hps-v2.1", "pickscore", "image-reward", "blip-itm")
    for name in (*names, "aesthetic-v1", "aesthetic-v2"):
        assert table[name].summary and table[name].size and table[name].scale and table[name].license
        assert not table[name].available()
    assert not table["sp"].available()
    assert list(tmp_path.iterdir()) == []  # asking makes no folder


@pytest.mark.parametrize("name", ["clip-mini", "stable-preference-mini", "brightness"])
def test_every_scorer_that_is_here_keeps_the_contract(name: str):
    scorer = load_scorer(name)
    assert isinstance(scorer, Scorer)
    check_scorer(scorer)


def test_the_test_double_ranks_by_brightness():
    levels = torch.tensor([0.5, torch.nan, 1.0, 0.0])
    scores = load_scorer("brightness").score("anything", levels[:, None, None, None].expand(4, 3, 8, 8))
    assert order(scores.tolist()) == [2, 0, 3, 1]
    with pytest.raises(UsageError, match="got 1 prompts, 2 images"):
        BrightnessScorer().score(["one"], torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("brigthness", "did you mean 'brightness'"),
        ("hps-v2.2", "did you mean 'hps-v2.1'"),
        ("", "clip-mini"),
        ("x@y", "sp@"),
        ("clip", "clip:ARCH/TAG"),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(spec: str, said: str):
    with pytest.raises(UsageError, match=said):
        load_scorer(spec)


def test_a_checkpoint_is_loaded_from_its_folder(encoder: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder.save_pretrained(tmp_path / "mine")
    loaded = load_scorer(f"sp@{tmp_path / 'mine'}", dtype=torch.bfloat16)
    assert loaded.name == encoder.name
    assert isinstance(loaded, DualEncoder)
    assert loaded.dtype == torch.bfloat16
    monkeypatch.setenv("SP_RERANK_CHECKPOINT", str(tmp_path / "mine"))
    assert load_scorer("sp").name == encoder.name
    loaded.save_pretrained(tmp_path / "again")
    written = (tmp_path / "again" / "config.json").read_text()
    assert str(tmp_path) not in written, "a checkpoint does not tell where it was made"
    assert written == (tmp_path / "mine" / "config.json").read_text()


def test_a_revision_needs_a_repository(tmp_path: Path):
    for spec in ("brightness", f"sp@{tmp_path}"):
        with pytest.raises(UsageError, match="a revision goes with"):
            load_scorer(spec, revision="main")


def test_sp_is_the_checkpoint_of_the_environment_else_the_mini_models_else_hps(monkeypatch: pytest.MonkeyPatch):
    assert resolve_sp("mini")[0] == "stable-preference-mini"
    spec, why = resolve_sp("someone/some-model")
    assert spec == "hps-v2.1"
    assert "someone/some-model" in why
    assert "SP_RERANK_CHECKPOINT" in why
    assert resolve_sp(None)[0] == "hps-v2.1"
    with pytest.raises(HubUnavailableError, match="hf download xswu/HPSv2"):
        load_scorer("sp")
    monkeypatch.setenv("SP_RERANK_CHECKPOINT", "owner/name")
    assert resolve_sp("mini")[0] == "sp@owner/name"


def test_a_missing_embedded_model_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("sp_rerank.scorers.registry._EMBEDDED", tmp_path)
    with pytest.raises(StorageError, match="install it again"):
        load_scorer("clip-mini")


def test_without_the_hub_one_is_told_without_waiting_which_file_to_download(never_waits: None):
    command = rf"hf download {PUBLISHED['hps-v2.1'].repo} HPS_v2.1_compressed.pt --revision \w{{40}}`.*scorers convert"
    with pytest.raises(HubUnavailableError, match=command):
        load_scorer("hps-v2.1")


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_without_the_hub_one_is_told_without_waiting_what_to_download(never_waits: None, revision: str | None):
    with pytest.raises(HubUnavailableError, match=r"owner/name.*hf download owner/name"):
        load_scorer("sp@owner/name", revision=revision)


def test_a_repository_in_the_cache_needs_no_hub(encoder: DualEncoder, tmp_path: Path):
    repository = tmp_path / "hub" / "models--owner--name"
    encoder.save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for revision in (None, COMMIT):
        assert load_scorer("sp@owner/name", revision=revision).name == encoder.name


@pytest.mark.parametrize("place", ["./none", "/none/such", "not a/repository/name", "pyproject.toml"])
def test_a_place_that_cannot_be_is_refused(place: str):
    with pytest.raises(UsageError, match="expected a folder"):
        load_scorer(f"sp@{place}")


def test_other_packages_add_scorers(plugin: Path):
    table = {entry.name: entry for entry in available_scorers()}
    assert table["our-scorer"].summary == "plug-in of the package our-plugin"
    scorer = load_scorer("our-scorer")
    assert scorer.name == "ours"
    check_scorer(scorer)


def test_other_packages_do_not_replace_ours(plugin: Path):
    assert load_scorer("brightness").name == "brightness"


def test_a_plugin_that_does_not_import_is_named(plugin: Path):
    with pytest.raises(UsageError, match=r"'broken' of the package our-plugin does not import: .*no_such_module"):
        load_scorer("broken")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "'raises' of the package our-plugin cannot be built: KeyError: 'weights'"),
        (
            "nothing",
            "of the package our-plugin: expected an object with .* a method score .compare for pairs., got a NoneType",
        ),
    ],
)
def test_a_plugin_that_builds_no_scorer_is_named(plugin: Path, name: str, said: str):
    with pytest.raises(UsageError, match=said):
        load_scorer(name)


def test_no_module_of_the_scorers_imports_the_registry_but_those_above_it():
    """The registry imports the converter, so the converter must not import the registry."""
    folder = Path(registry.__file__).parent
    imports = re.compile(r"from sp_rerank\.scorers(\.registry)? import")
    users = {file.name for file in folder.glob("*.py") if imports.search(file.read_text(encoding="utf-8"))}
    assert users == {"__init__.py", "calibration.py", "taste.py"}
