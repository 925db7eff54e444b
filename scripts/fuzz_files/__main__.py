"""Fuzzes the readers of files that come from elsewhere.

    python -m scripts.fuzz_files weights --seconds=60 --seed=1

A case is a file, drawn with its structure in mind: sound ones, damaged ones, and such
as want much memory or time. It is read in a process of its own. Right is to read it, or
to refuse it in one printable line, within the bounds of memory and time. A finding
prints `--seed=S --case=I`, which repeats it, and leaves its file; the exit status is 1.
"""

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from scripts.fuzz_files.bounded import Outcome, run_case

# Modules of this package. Each has
#   SUFFIXES: of its files' names, one is drawn;
#   write(rng, path) -> str: writes the file of a case and says what it is;
#   read(path): reads it as the product does, or raises one of REFUSALS;
#   bounds(size) -> Bounds: for a file of so many bytes.
KINDS = ("annotations", "images", "labels", "weights")


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts.fuzz_files", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz_files"))
    arguments = parser.parse_args()
    kind = importlib.import_module(f"scripts.fuzz_files.{arguments.kind}")
    end = time.monotonic() + arguments.seconds
    cases = [arguments.case] if arguments.case is not None else range(10**9)
    tally: Counter[str] = Counter()
    findings = 0
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            path, what, outcome = _run(kind, arguments.seed, case, Path(folder))
            tally[outcome.kind] += 1
            slowest = max(slowest, outcome.seconds)
            largest = max(largest, outcome.memory / 2**20)
            if arguments.case is not None or not outcome.right:
                print(
                    f"{outcome.kind}: {what}, {outcome.seconds:.2f} s, "
                    f"{outcome.memory / 2**20:.0f} MiB, --seed={arguments.seed} "
                    f"--case={case}\n{outcome.text}",
                    flush=True,
                )
            if not outcome.right:
                findings += 1
                arguments.keep.mkdir(parents=True, exist_ok=True)
                name = f"{arguments.kind}_{arguments.seed}_{case}{path.suffix}"
                if path.is_file():
                    shutil.copyfile(path, arguments.keep / name)
            path.unlink()
            if time.monotonic() > end:
                break
    shown = ", ".join(f"{name} {count}" for name, count in tally.most_common())
    print(
        f"{tally.total()} cases: {shown}; at most {slowest:.2f} s and {largest:.0f} MiB"
    )
    return 1 if findings else 0


def _run(kind: Any, seed: int, case: int, folder: Path) -> tuple[Path, str, Outcome]:
    rng = np.random.default_rng((seed, case))
    path = folder / f"case{rng.choice(kind.SUFFIXES)}"
    what = kind.write(rng, path)
    status = path.stat()
    # What a sparse file does not have on the disk does not count.
    bounds = kind.bounds(min(status.st_size, 512 * status.st_blocks))
    return path, what, run_case(lambda: kind.read(path), bounds, kind.REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
