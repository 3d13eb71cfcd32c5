"""What the comparison of precisions reports; the figures themselves are a machine's."""

from sp_rerank.train.mini.experiments.precision import compare_precision


def test_every_prompt_is_counted_once_in_a_comparison_of_precisions():
    result = compare_precision(3, 6, 2, "bfloat16", print)
    kinds = ("the same four", "another four, within a tie", "another four, beyond a tie")
    assert sum(result[kind] for kind in kinds) == 3
    assert 0 < result["margin / spread of the scores"] < 0.5
