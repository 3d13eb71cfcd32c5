"""python deaths.py FOLDER run|search|grow: a run dies at its 1st, 2nd, ... file operation, each in a folder of its own.

It dies before an operation that names a file, and in the middle of what fsync was to make durable. Every folder is then
resumed and left for inspection: FOLDER/whole is an uninterrupted run, FOLDER/died-1 and so on are those that died and
were resumed, the last of them the one that had no such operation any more. Prints how many problems were found, before
the resume, that no crash may leave behind; a candidate that is scored again at a stage that was committed is one.
"""

import json
import os
import stat
import sys
from pathlib import Path

from sp_rerank.config import Stage
from sp_rerank.run.folder import RunDir
from support import crash_writer

SIZES = {"run": 10, "search": 4, "grow": 18}  # a batch and a quarter; two finished and two dropped; twice 9
WRITERS = {"run": crash_writer.write_run, "search": crash_writer.write_search, "grow": crash_writer.write_run}
HARMLESS = ("left by an interrupted write", "not in candidates.jsonl")  # what the next --resume removes


class Mortal:
    """A process that dies at its n-th file operation in a folder."""

    def __init__(self, folder, operation):
        self.folder, self.left = str(folder), operation
        self.synced = {}
        os.fsync = self.fsync
        sys.addaudithook(self.audit)

    def audit(self, event, arguments):
        if event.startswith(("open", "os.", "shutil.")) and self.folder in str(arguments) and self.last():
            os._exit(9)

    def fsync(self, descriptor):
        """Nothing is lost with a process, so there is nothing to sync; but what follows the last sync may be torn."""
        state = os.fstat(descriptor)
        if self.last():
            if stat.S_ISREG(state.st_mode):
                durable = min(self.synced.get(state.st_ino, 0), state.st_size)
                os.ftruncate(descriptor, (durable + state.st_size) // 2)
            os._exit(9)
        self.synced[state.st_ino] = state.st_size

    def last(self):
        self.left -= 1
        return self.left == 0


def died(write, folder, n, operation):
    """Write the run in a child that dies at that operation; False if it had no more than that many."""
    child = os.fork()
    if child == 0:
        Mortal(folder, operation)
        write(folder, n=n)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return code == 9


def unsound(folder):
    """Problems that the next resume would not clear."""
    if not (folder / "run.json").exists():
        return []
    run = RunDir.read(folder)
    if run.missing and run.result:
        return ["said to be done, and is not"]
    return [problem for problem in run.verify() if not problem.endswith(HARMLESS)]


def committed(folder):
    """What the journals hold: (index, stage) of candidates on their way, (index, None) of those in the run."""
    known = set()
    for name in ("stages.jsonl", "candidates.jsonl"):
        text = (folder / name).read_bytes() if (folder / name).exists() else b""
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            record = json.loads(line)
            known.add((record["index"], Stage.parse(record["name"]) if "name" in record else None))
    return known


def main():
    os.fsync = lambda descriptor: None
    folder, way = Path(sys.argv[1]), sys.argv[2]
    n, write = SIZES[way], WRITERS[way]

    def begin(name):
        if way == "grow":
            write(folder / name, n=n // 2)
        return folder / name

    write(begin("whole"), n=n)
    operation, problems, dies = 0, 0, True
    while dies:
        operation += 1
        died_here = begin(f"died-{operation}")
        dies = died(write, died_here, n, operation)
        problems += len(unsound(died_here))
        known = committed(died_here)
        scored = write(died_here, n=n, resume=True)
        problems += len(known.intersection(scored or ()))
    print(problems)


if __name__ == "__main__":
    main()
