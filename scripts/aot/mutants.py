"""Which faults of the path to a GPU does compiling without one see?

    python -m scripts.aot.mutants [--write]

Plants one fault at a time in a process of its own, compiles the gradient of
deform_conv2d for an H100, and runs it on the CPU by the emulated kernels. What neither
sees, only a GPU can. Prints the table of docs/aot.md, and with --write puts it there;
exit status 1: a verdict is not the expected one.
"""

import os
import subprocess
import sys

from scripts.aot.__main__ import environment
from scripts.aot.document import DOCUMENT, markers
from scripts.aot.library import missing_code
from scripts.aot.machines import MACHINES
from scripts.aot.planted import MUTANTS, QUIET, SEEN
from scripts.benchmark.markdown import replace_section


def _ask(key: str, how: str) -> str:
    added = environment(MACHINES["h100"])
    if how == "emulation":
        added |= {"JAX_PLATFORMS": "cpu", "XLA_OPS_EMULATE_CUDA": "1", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.aot.planted", key, how],
        env=os.environ | added,
        capture_output=True,
        text=True,
    )
    verdict = done.stdout.strip()
    if done.returncode or verdict not in (SEEN, QUIET):
        return f"failed: {done.stderr[-300:]}"
    return verdict


def main() -> int:
    """Returns the exit status."""
    good, rows = True, []
    for key, mutant in MUTANTS.items():
        found = _ask(key, "compiling")
        run = _ask(key, "emulation") if mutant.emulation else ""
        good &= (found, run) == (mutant.compiling, mutant.emulation)
        left = "yes" if key != "none" and SEEN not in (found, run) else "no"
        rows.append([mutant.title, found, run, left])
        print(*rows[-1], sep=" | ", flush=True)
    # A library without code for a device: XLA does not look into it, `library` does.
    seen = SEEN if missing_code((7, 5)) else QUIET
    good &= seen == SEEN
    rows.append(["a library without code for the device", seen, "", "no"])
    head = ["fault", "compiling", "emulated kernels", "left to a GPU"]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(f"\n{table}")
    if "--write" in sys.argv:
        replace_section(DOCUMENT, table, *markers("mutants"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
