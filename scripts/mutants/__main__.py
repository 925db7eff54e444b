"""Plants the bugs of `table` one at a time and says which checks find them.

    scripts/mutants.sh [cpu|cuda] [NAME]

NAME runs those whose name contains it. Exit status 1: a verdict is not as expected.
"""

import argparse
import concurrent.futures
import os
import queue
import sys
import tempfile
from pathlib import Path

from scripts.mutants.checks import FOUND, QUIET, Copy, PlantingFailed
from scripts.mutants.table import MUTANTS, Mutant


def _judge(copy: Copy, library: str, mutant: Mutant) -> tuple[bool, list[str]]:
    """Whether all checks say what they must, and their verdicts as lines."""
    good, lines = True, []
    expected = FOUND if mutant.found else QUIET
    patch = mutant.patch(library)
    try:
        copy.apply(patch)
    except PlantingFailed as error:
        return False, [f"ERROR   {mutant.name}: {error}"]
    for check in mutant.checks:
        try:
            verdict, how = copy.verdict(library, check)
        except PlantingFailed as error:
            verdict, how = "does not compile", str(error)
        good &= verdict == expected
        mark = "ok     " if verdict == expected else "ERROR  "
        lines.append(f"{mark} {mutant.name} ({check}): {verdict}. {how}".rstrip())
    copy.take_back(patch)
    return good, lines


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/mutants.sh")
    parser.add_argument("library", nargs="?", choices=sorted(MUTANTS))
    parser.add_argument("name", nargs="?", default="")
    arguments = parser.parse_args()
    workers = os.cpu_count() or 1
    failed, total = 0, 0
    with tempfile.TemporaryDirectory() as work:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for i in range(workers):
            copies.put(Copy(Path(work) / str(i)))

        def judge(library: str, mutant: Mutant) -> tuple[bool, list[str]]:
            copy = copies.get()
            try:
                return _judge(copy, library, mutant)
            finally:
                copies.put(copy)

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            verdicts = [
                pool.submit(judge, library, mutant)
                for library, mutants in MUTANTS.items()
                if arguments.library in (None, library)
                for mutant in mutants
                if arguments.name in mutant.name
            ]
            for done in concurrent.futures.as_completed(verdicts):
                good, lines = done.result()
                failed += not good
                total += 1
                print(*lines, sep="\n", flush=True)
    print(f"{total - failed} of {total} as expected")
    return 0 if total and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
