"""What tests share. The mini world's code is in no wheel: where the installed package lacks it, the checkout has it."""

import importlib.util
import sys
from pathlib import Path

import sp_rerank.train

MINI = Path(__file__).parents[2] / "train" / "mini"

if importlib.util.find_spec("sp_rerank.train.mini") is None:
    spec = importlib.util.spec_from_file_location(
        "sp_rerank.train.mini", MINI / "__init__.py", submodule_search_locations=[str(MINI)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = sp_rerank.train.mini = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
