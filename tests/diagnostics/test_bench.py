"""What a bench reports; the figures themselves are a machine's, and no test's promise."""

import sys

import pytest

from sp_rerank.diagnostics.timing import timed_process


def test_a_process_is_timed_and_its_complaint_passed_on():
    seconds, megabytes = timed_process([sys.executable, "-c", "import time; time.sleep(0.2); b = b'x' * 60_000_000"])
    assert 0.2 < seconds < 30
    assert megabytes > 60
    with pytest.raises(RuntimeError, match="no such luck"):
        timed_process([sys.executable, "-c", "raise SystemExit('no such luck')"])
