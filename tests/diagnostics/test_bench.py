"""What a bench reports; the figures themselves are a machine's, and nobody's promise."""

import sys

import pytest

from sp_rerank.diagnostics.bench import compare_precision, timed_process


def test_every_prompt_is_counted_once_in_a_comparison_of_precisions():
    result = compare_precision(3, 6, 2, "bfloat16", print)
    kinds = ("the same four", "another four, within a tie", "another four, beyond a tie")
    assert sum(result[kind] for kind in kinds) == 3
    assert 0 < result["margin / spread of the scores"] < 0.5


def test_a_process_is_timed_and_its_complaint_passed_on():
    seconds, megabytes = timed_process([sys.executable, "-c", "import time; time.sleep(0.2); b = b'x' * 60_000_000"])
    assert 0.2 < seconds < 30
    assert megabytes > 60
    with pytest.raises(RuntimeError, match="no such luck"):
        timed_process([sys.executable, "-c", "raise SystemExit('no such luck')"])
