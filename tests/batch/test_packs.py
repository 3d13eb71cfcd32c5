"""Prompts that share calls of the pipeline: how a list is packed, that each prompt's images are its own, what fails."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest
import torch
from support.batch_worlds import poisoned
from support.doubles import SeededPipe
from support.runs import files_of
from support.tiny import build_sdxl

from sp_rerank import load_scorer
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.order import Models, Order
from sp_rerank.batch.packs import Pack, pack_size, packed
from sp_rerank.batch.prompt_batch import BatchSettings, PromptBatch
from sp_rerank.batch.prompts import PromptRow, rows_of
from sp_rerank.batch.shards import Shard
from sp_rerank.batch.units import decode, key_of
from sp_rerank.batch.worker import UnitMaker
from sp_rerank.config import GenerationOptions
from sp_rerank.diffusion.memory_limit import MemoryLimit
from sp_rerank.diffusion.packed import make_together
from sp_rerank.diffusion.sampler import sampler_of
from sp_rerank.errors import OptionError, UsageError
from sp_rerank.search.resolve import resolve
from sp_rerank.storage.images import read_image

OPTIONS = {"n": 3, "top_k": 1, "batch_size": 4, "steps": 2, "guidance_scale": 1.0}


def rows(*prompts, **changes):
    return [PromptRow(str(number), prompt, **changes) for number, prompt in enumerate(prompts)]


def maker(folder, **order):
    return UnitMaker(Order(str(folder), Models.of(poisoned), OPTIONS, **{"keep": "all", "pack": 3, **order}))


def unit(folder, row_id):
    return decode((folder / key_of(row_id)).read_bytes(), row_id)


def pixels(entry) -> bytes:
    return read_image(lambda: io.BytesIO(entry["image"]), "x").tobytes()


def configs(pipe, *prompts, **options):
    asked = GenerationOptions(**{"n": 2, "top_k": 1, "steps": 2, "batch_size": 6, **options})
    return [resolve(prompt, asked, pipe=pipe, scorer=load_scorer("brightness")) for prompt in prompts]


def test_consecutive_rows_are_packed_and_rows_of_another_shape_begin_anew():
    listed = [*rows("a", "b", "c"), PromptRow("3", "d", steps=9), PromptRow("4", "e", steps=9), PromptRow("5", "f")]
    assert [pack.ids for pack in packed(listed, 2)] == [("0", "1"), ("2",), ("3", "4"), ("5",)]
    assert [pack.ids for pack in packed(listed, 1)] == [(str(i),) for i in range(6)]


def test_rows_that_are_added_leave_the_packs_as_they_are(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add_prompts(rows_of("abcd"))
    ledger.add_prompts(rows_of("abcdef"))
    assert [pack.ids for pack in ledger.packs(3)] == [("0", "1", "2"), ("3",), ("4", "5")]


def test_shards_take_whole_packs(tmp_path):
    parts = []
    for index in range(2):
        settings = BatchSettings(shard=Shard(index, 2), pack=2)
        parts.append([pack.ids for pack in PromptBatch("abcde", tmp_path, settings=settings).due()])
    assert parts == [[("0", "1"), ("4",)], [("2", "3")]]


def test_a_prompt_keeps_its_noise_and_its_score_in_a_pack(tmp_path):
    """The double draws from the seeds alone, so that packed and single images are the same to the bit."""
    outcomes = maker(tmp_path / "packed").make(Pack.of(*rows("a", "b", "c")))
    assert [(outcome.id, outcome.status, outcome.made) for outcome in outcomes] == [(i, "ok", 3) for i in "012"]
    single = maker(tmp_path / "single", pack=1)
    for row in rows("a", "b", "c"):
        single.make(Pack.of(row))
        ours, alone = unit(tmp_path / "packed", row.id), unit(tmp_path / "single", row.id)
        assert ours.together == ("0", "1", "2")
        assert alone.together == ()
        assert [(c["seed"], c["score"], pixels(c)) for c in ours.kept] == [
            (c["seed"], c["score"], pixels(c)) for c in alone.kept
        ]
        assert ours.config.prompt == row.prompt
    # nine candidates in calls of four, four and one
    sizes = [[c["batch_size"] for c in unit(tmp_path / "packed", i).candidates.values()] for i in "012"]
    assert sizes == [[4, 4, 4], [4, 4, 4], [4, 4, 1]]


def test_what_is_due_of_a_pack_is_made_with_all_of_it(tmp_path):
    maker(tmp_path / "whole").make(Pack.of(*rows("a", "b", "c")))
    (outcome,) = maker(tmp_path / "part").make(Pack(tuple(rows("a", "b", "c")), ("1",)))
    assert outcome.id == "1"
    assert list(Ledger(tmp_path / "part").keys("units")) == [key_of("1").split("/", 1)[1].removesuffix(".parquet")]
    assert (tmp_path / "part" / key_of("1")).read_bytes() == (tmp_path / "whole" / key_of("1")).read_bytes()


def test_a_pack_that_fails_is_made_prompt_by_prompt(tmp_path):
    outcomes = maker(tmp_path).make(Pack.of(*rows("a", "raise", "c")))
    assert [(outcome.id, outcome.status) for outcome in outcomes] == [("0", "ok"), ("1", "failed"), ("2", "ok")]
    assert "cannot be drawn" in outcomes[1].error
    assert unit(tmp_path, "0").together == ()


def test_a_prompt_that_is_refused_takes_no_other_along(tmp_path):
    outcomes = maker(tmp_path).make(Pack.of(*rows("a", " ", "c")))
    assert [(outcome.id, outcome.status) for outcome in outcomes] == [("0", "ok"), ("1", "failed"), ("2", "ok")]
    assert unit(tmp_path, "0").together == ("0", "2")


def test_a_lost_accelerator_ends_the_pack(tmp_path):
    outcomes = maker(tmp_path).make(Pack.of(*rows("a", "lose", "c")))
    assert [outcome.status for outcome in outcomes] == ["again"]
    assert Ledger(tmp_path).keys("units") == {}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' Euler scheduler
@pytest.mark.parametrize("family", ["mini", "sdxl"])
def test_a_real_pipeline_gives_each_prompt_what_it_asked_for(request, family):
    """Within what another batch size does to the last digits, the images are those of each prompt by itself."""
    pipe = request.getfixturevalue("mini") if family == "mini" else build_sdxl()
    prompts = ("a red circle", "two blue squares on white", "a cat")
    runs = configs(pipe, *prompts, guidance_scale=3.0, negative_prompt="green")
    found = make_together(runs, pipe)
    for config, batches in zip(runs, found, strict=True):
        (alone,) = sampler_of(config, pipe).batches({0: 0, 1: 1})
        together = torch.cat([batch.images for batch in batches])
        assert [batch.batch_size for batch in batches] == [6]
        assert (together - alone.images).abs().max() < 1e-3
    assert (found[0][0].images - found[1][0].images).abs().max() > 1e-2  # the prompts are not one and the same


def test_memory_that_runs_out_halves_the_calls_and_is_remembered():
    def spoil(seeds, images):
        if len(seeds) > 2:
            raise RuntimeError("CUDA out of memory")

    pipe, limit = SeededPipe(spoil), MemoryLimit()
    found = make_together(configs(pipe, "a", "b"), pipe, memory_limit=limit)
    assert [[batch.batch_size for batch in batches] for batches in found] == [[2], [2]]
    assert limit.images == 2


def test_prompts_of_other_lengths_are_not_packed(monkeypatch, mini):
    runs = configs(mini, "a", "b")
    from sp_rerank.diffusion.packed import PackedSampler

    lengths = iter((5, 7))
    monkeypatch.setattr(
        PackedSampler, "_encode_text", lambda self, prompt: {"prompt_embeds": torch.zeros(1, next(lengths), 3)}
    )
    with pytest.raises(UsageError, match="encodes prompts to different lengths; do not pack them"):
        make_together(runs, mini)


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("7", 7), ("auto", 5)])
def test_how_many_prompts_fill_a_batch(text, size):
    assert pack_size(text, GenerationOptions(n=3, batch_size=16)) == size


@pytest.mark.parametrize("text", ["0", "-1", "many", "1001", "²", ""])
def test_no_number_of_prompts(text):
    with pytest.raises(OptionError, match="pack is"):
        pack_size(text, GenerationOptions(n=3, batch_size=16))
    with pytest.raises(OptionError, match="together with a batch size"):
        pack_size("auto", GenerationOptions(n=3))


def test_what_cannot_be_packed_is_refused(tmp_path):
    for options, keep in (({"search": "fast"}, "top"), ({"confidence": 0.9}, "top"), ({}, "run")):
        with pytest.raises(OptionError, match="pack is 2; expected 1"):
            PromptBatch("ab", tmp_path, settings=BatchSettings(pack=2, keep=keep), n=3, **options)


def test_a_batch_that_was_begun_with_another_pack_is_refused(tmp_path):
    maker(tmp_path)
    with pytest.raises(UsageError, match="pack is 3, not 2"):
        PromptBatch("ab", tmp_path, settings=BatchSettings(pack=2, keep="all"), **OPTIONS)
    with pytest.raises(UsageError, match="pack is 3, not 1"):
        maker(tmp_path, pack=1)


def test_a_batch_from_before_packs_goes_on(tmp_path):
    maker(tmp_path, pack=1)
    record = json.loads((tmp_path / "batch.json").read_text())
    assert record.pop("pack") == 1
    (tmp_path / "batch.json").write_text(json.dumps(record))
    maker(tmp_path, pack=1)


def test_two_workers_make_packs_as_one_does(tmp_path, monkeypatch):
    """The same bytes, through processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the workers find the double
    for workers in (1, 2):
        batch = PromptBatch(
            [f"prompt {number}" for number in range(5)], tmp_path / str(workers), models=Models.of(poisoned),
            settings=BatchSettings(pack=2, workers=workers), **OPTIONS,
        )  # fmt: skip
        assert sorted((outcome.id, outcome.status) for outcome in batch.run()) == [(str(i), "ok") for i in range(5)]
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
