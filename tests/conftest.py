"""What every test may use. Sockets are closed (pyproject.toml) and the hub is off for the whole suite."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def mini():
    """The embedded pipeline in float32, for reading only."""
    from sp_rerank import load_pipeline

    return load_pipeline("mini")
