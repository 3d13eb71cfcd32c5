"""The plain loop of the bench does the same math, and a counted step costs what arithmetic says."""

from __future__ import annotations

import pytest

from sp_rerank.errors import UsageError
from sp_rerank.train.bench import compare_train, count_step
from sp_rerank.train.recipe import read_recipe


def test_both_ways_of_the_bench_give_the_same_losses(capsys):
    result = compare_train(steps=1, rounds=1, progress=print)
    print(f"losses of the two ways differ by {result['largest difference of the losses']:.1e}")
    assert result["largest difference of the losses"] < 1e-5
    assert result["ours / plain loop"] > 0


def test_a_step_of_clip_l_costs_what_arithmetic_says():
    plain = ["gradient_checkpointing=false", "ai_weight=0.0", "batch_size=64", "precision=float32"]
    counted = count_step(read_recipe("clip-l").with_overrides(plain))
    # 162 GFLOP an image and 13 a text (of 77 tokens) forward, twice that backward
    assert counted["TFLOP a step"] == pytest.approx(3 * (128 * 0.162 + 64 * 0.013), rel=0.03)
    assert counted["parameters, M"] == pytest.approx(427.6, abs=0.1)
    assert counted["gradients and AdamW, GB"] == pytest.approx(12 * 0.4276, abs=0.1)
    half = count_step(read_recipe("clip-l").with_overrides([*plain, "precision=bfloat16"]))
    assert 0.5 <= half["activations, GB"] / counted["activations, GB"] < 0.7  # layer norms stay in float32
    parts = count_step(read_recipe("clip-l").with_overrides([*plain, "micro_batch_size=16"]))
    assert parts["TFLOP a step"] == pytest.approx(4 / 3 * counted["TFLOP a step"], rel=0.02)  # a first pass forward
    assert parts["activations, GB"] < counted["activations, GB"] / 6


def test_a_step_of_a_recipe_whose_base_is_not_published():
    with pytest.raises(UsageError, match="published dual encoder"):
        count_step(read_recipe("mini"))
