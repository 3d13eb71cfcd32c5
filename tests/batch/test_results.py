"""What is asked of a whole batch: whether its scorers agree, its page, its upload."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.batch_worlds import poisoned

from sp_rerank.batch.agreement import compare_batch
from sp_rerank.batch.exports import Selection, export
from sp_rerank.batch.ledger import Failure, Ledger
from sp_rerank.batch.order import Models, Order
from sp_rerank.batch.overview import batch_overview
from sp_rerank.batch.packs import Pack
from sp_rerank.batch.prompts import PromptRow, rows_of
from sp_rerank.batch.score_table import read_scores
from sp_rerank.batch.second_pass import score_batch
from sp_rerank.batch.units import UNITS, decode
from sp_rerank.batch.worker import UnitMaker
from sp_rerank.compare.tables import markdown_of_batch
from sp_rerank.errors import NothingUsableError, StorageError, UsageError
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.stats import agreement

PROMPTS = ["a cat", '<img src=x onerror="alert(1)">', "{{ 7 * 7 }}", "a cat"]


class Redness(BrightnessScorer):
    """The redder, the better; its name is no name of a column."""

    name = 'red"; drop table scores; --@1'

    def score(self, prompt, images):
        return torch.tensor([float(np.asarray(image.convert("RGB"))[..., 0].mean()) for image in images])


def make(folder: Path, prompts=PROMPTS, **options) -> Ledger:
    maker = UnitMaker(Order(str(folder), Models.of(poisoned), {"n": 12, "guidance_scale": 1.0, **options}, keep="all"))
    ledger = Ledger(folder)
    ledger.add_prompts(rows_of(prompts))
    for number, prompt in enumerate(prompts):
        maker.make(Pack.of(PromptRow(str(number), prompt, seed=100 * number)))
    return ledger


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    found = make(tmp_path_factory.mktemp("batch"))
    score_batch(found, Redness())
    return found


def columns(ledger: Ledger, row_id: str) -> tuple[list[float], list[float]]:
    """The scores of a prompt by both scorers, from the files."""
    table = read_scores(ledger).connection.execute(
        'select s0, s1 from scores where prompt_id = ? order by "index"', [row_id]
    )
    first, second = zip(*table.fetchall(), strict=True)
    return list(first), list(second)


def test_the_table_holds_every_score_of_every_unit(ledger):
    table = read_scores(ledger)
    assert table.scorers == ("brightness", Redness.name)
    assert table.connection.execute("select count(*), count(s0), count(s1) from scores").fetchone() == (48, 48, 48)
    key = next(entry.key for entry in ledger.store.list(f"{UNITS}/"))
    unit = decode(ledger.store.read(key) or b"", key)
    assert columns(ledger, unit.row.id)[0] == [entry["score"] for entry in unit.candidates.values()]


def test_the_scorers_of_a_batch_are_compared_within_prompts(ledger):
    found = compare_batch(ledger)
    (pair,) = found.pairs
    by_row = [columns(ledger, str(number)) for number in range(4)]
    taus = [agreement.kendall(*pair) for pair in by_row]
    # two rows of one prompt are one prompt
    assert pair.kendall.value == pytest.approx(((taus[0] + taus[3]) / 2 + taus[1] + taus[2]) / 3)
    assert (pair.kendall.n, found.prompts, found.runs) == (3, 3, ())
    assert pair.kendall.low <= pair.kendall.value <= pair.kendall.high
    text = markdown_of_batch(found)
    assert text.startswith("## A batch of 3 prompts\n")
    assert "Kendall tau-b" in text and "The picks by the other scorer" in text


def test_one_scorer_agrees_with_no_other(tmp_path):
    with pytest.raises(UsageError, match="holds the scores of one scorer; add another"):
        compare_batch(make(tmp_path, ["a"]))


def test_a_batch_without_units_has_nothing_to_compare(tmp_path):
    Ledger(tmp_path).add_prompts(rows_of(["a"]))
    with pytest.raises(NothingUsableError, match="holds no finished prompt yet"):
        batch_overview(Ledger(tmp_path))
    with pytest.raises(UsageError, match="holds no batch"):
        batch_overview(Ledger(tmp_path / "nowhere"))


def test_a_damaged_unit_is_named(tmp_path):
    ledger = make(tmp_path, ["a"])
    next((tmp_path / UNITS).rglob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(StorageError, match="is no object of a batch"):
        read_scores(ledger)


def test_the_page_shows_picks_and_obeys_no_prompt(ledger):
    text = batch_overview(ledger).decode()
    assert '<h1 class="short">4 prompts</h1>' in text
    assert text.count("data:image/webp;base64,") == 8  # of four prompts by two scorers
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;" in text and "<img src=x" not in text
    assert "{{ 7 * 7 }}" in text
    assert "choose the same image for" in text
    assert "default-src &#39;none&#39;" in text


def test_the_page_names_what_failed_and_is_short_of_long_lists(tmp_path, monkeypatch):
    from sp_rerank.batch import overview

    monkeypatch.setattr(overview, "SHOWN", 2)
    ledger = make(tmp_path, ["a", "b", "c", "d"])
    ledger.add_prompts(rows_of(["a", "b", "c", "d", "e"]))
    ledger.fail(Failure("4", "failed", "<b>broken</b>", 1))
    text = batch_overview(ledger).decode()
    assert text.count('class="row"') == 2
    assert "2 of them, evenly spaced over the list" in text
    assert ">a\n" in text.split("<main>")[1] and ">c\n" in text.split("<main>")[1]
    assert "&lt;b&gt;broken&lt;/b&gt;" in text


def test_images_that_were_not_kept_are_not_shown(tmp_path):
    maker = UnitMaker(Order(str(tmp_path), Models.of(poisoned), {"n": 4, "guidance_scale": 1.0}, keep="none"))
    Ledger(tmp_path).add_prompts(rows_of(["a"]))
    maker.make(Pack.of(PromptRow("0", "a")))
    assert "image not kept" in batch_overview(Ledger(tmp_path)).decode()


def test_an_export_is_uploaded_where_there_is_a_token(tmp_path, ledger, fake_hub):
    hub = fake_hub()
    export(ledger, tmp_path / "out", "table", Selection())
    done = hub.push(tmp_path / "out", "me/scores", "dataset", token="hf_test")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/datasets/me/scores"
    assert hub.created == [{"name": "scores", "organization": "me", "type": "dataset", "visibility": "private"}]
    assert hub.files["scores.parquet"] == (tmp_path / "out" / "scores.parquet").read_bytes()
    assert hub.tokens == {"Bearer hf_test"}


def test_without_a_token_it_is_one_line_before_the_work(tmp_path, fake_hub):
    hub = fake_hub()
    done = hub.push(tmp_path, "me/scores", "dataset", token="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "me/scores: no token of the hub is known here; run `hf auth login`, or set HF_TOKEN\n"
    assert hub.created == []


@pytest.mark.parametrize("repo", ["scores", "a/b/c", "../x", "me/<b>", ""])
def test_what_is_no_repository_is_refused(repo):
    from sp_rerank.storage.hub import check_push

    with pytest.raises(UsageError, match="expected a repository of the hub, OWNER/NAME"):
        check_push(repo)


def test_a_hub_that_refuses_or_is_not_there_is_one_line(tmp_path, fake_hub):
    (tmp_path / "file").write_text("x")
    refusing = fake_hub(status=403)
    done = refusing.push(tmp_path, "other/scores", "dataset", token="hf_test")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "other/scores: the hub refuses the upload" in done.stderr
    refusing.close()
    done = refusing.push(tmp_path, "other/scores", "dataset", token="hf_test")
    assert (done.returncode, len(done.stderr.splitlines())) == (69, 1)
    assert f"`hf upload other/scores {tmp_path} --repo-type dataset` sends it later" in done.stderr


def test_the_json_of_a_comparison_is_json(ledger):
    from sp_rerank.report.tables import to_json

    pairs = json.loads(json.dumps(to_json(compare_batch(ledger).pairs), allow_nan=False))
    assert pairs[0]["scorers"] == ["brightness", Redness.name]
