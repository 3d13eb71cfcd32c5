"""python tests/parity/table.py

Prints the table of docs/reports/scorers.md: every scorer against its original, small networks with random weights.
"""

import subprocess
import sys
from pathlib import Path

from difference import MARK

TESTS = ("test_parity.py", "test_blip.py", "test_mps.py", "test_siglip.py", "test_aesthetic.py")

if __name__ == "__main__":
    files = [str(Path(__file__).parents[1] / "scorers" / name) for name in TESTS]
    # each comparison prints its line, which -s lets through from this process, but not from a worker
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-n", "0", *files], capture_output=True, text=True, check=False
    )
    print("| scorer | original | scores | spread | largest difference, of the spread |\n|---|---|---|---|---|")
    for line in tests.stdout.splitlines():
        if line.startswith(MARK):
            print(line.removeprefix("parity "))
    sys.exit(tests.returncode)
