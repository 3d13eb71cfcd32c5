"""The public names: all there, cheap, and the function where a module bears the same name."""

import subprocess
import sys

import sp_rerank


def test_every_public_name_is_there():
    assert [name for name in sp_rerank.__all__ if not hasattr(sp_rerank, name)] == []
    assert [name for name in dir(sp_rerank) if not name.startswith("__")] == sorted(sp_rerank.__all__)


def test_a_function_stays_a_function_after_its_module_is_imported():
    code = (
        "import sp_rerank.compare.compare, sp_rerank.generate, sp_rerank.rank, sp_rerank.replay\n"
        "from sp_rerank import compare, generate, rank, replay\n"
        "print([type(name).__name__ for name in (compare, generate, rank, replay)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["function"] * 4)
