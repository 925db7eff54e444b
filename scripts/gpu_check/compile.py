"""The stage that compiles the programs of `scripts/aot.sh --short`, for this device.

    python -m scripts.gpu_check.compile [--emulated]

It comes first: a call that XLA does not know, or that is missing, is found in a minute.
"""

import sys
import time

import jax

from scripts.aot.judge import cells, problems
from scripts.aot.machines import MACHINES
from scripts.aot.programs import programs
from scripts.aot.worker import compile_program
from scripts.gpu_check.runner import CUT_SHORT, seconds_left
from train import sharding

# A dry run shows that the stage runs.
_FEW = 2


def main() -> int:
    """Returns the exit status."""
    begin, last = time.monotonic(), 0.0
    machine = MACHINES["h100"]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    chosen = [program for program in programs(machine) if program.short]
    if "--emulated" in sys.argv:
        print(f"Skipped: all but {_FEW} programs, as this is a dry run.\n")
        chosen = chosen[:_FEW]
    good, rows = True, []
    for program in chosen:
        if seconds_left(begin) < 2 * last + 2:
            print("Skipped: the rest, for want of time.\n")
            return CUT_SHORT if good else 1
        result = compile_program(machine, mesh, program)
        last = result.seconds
        found = problems(result, machine, None)
        good &= not found
        said = "; ".join(found)
        if result.figures is not None:
            figures = cells(result)
            rows.append(
                [result.title, f"{figures['temporary, MiB']:.1f}", f"{last:.1f}"]
            )
        print(f"- {'**wrong**' if found else 'ok'}: {result.title} {said}", flush=True)
    print("\n| program | temporary, MiB | compiled in s |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
