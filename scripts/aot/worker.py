"""Compiles the programs of one machine, in the environment that it asks for.

    python -m scripts.aot.worker MACHINE [--short] [--only=REGEX]

Writes a line of JSON for each program as soon as it is compiled: a `Result`.
"""

import argparse
import json
import re
import sys
import time
from typing import Any, NamedTuple

from scripts.aot import figures as counting
from scripts.aot import hlo
from scripts.aot.figures import Figures
from scripts.aot.machines import MACHINES, Machine


class Result(NamedTuple):
    """What became of a program.

    Attributes:
      title: Of the program.
      figures: None where it does not compile.
      missing: Our calls that should be in it, and are not.
      error: First lines of the compiler's message, or "".
      seconds: That it took.
    """

    title: str
    figures: Figures | None
    missing: tuple[str, ...]
    error: str
    seconds: float

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            self._asdict() | {"figures": self.figures and self.figures._asdict()}
        )


def from_json(line: str) -> Result:
    """The inverse of `Result.to_json`."""
    fields = json.loads(line)
    figures = fields["figures"]
    return Result(
        **fields
        | {
            "figures": None if figures is None else Figures(**figures),
            "missing": tuple(fields["missing"]),
        }
    )


def compile_program(machine: Machine, mesh: Any, program: Any) -> Result:
    """Compiles and counts; what goes wrong is the result's."""
    begin = time.monotonic()
    figures, missing, error = None, (), ""
    try:
        compiled = program.lower(mesh).compile()
        memory = compiled.memory_analysis()
        figures = counting.figures(
            hlo.parse(compiled.as_text()), memory.temp_size_in_bytes, machine.rates
        )
        if machine.platform == "cuda":
            missing = tuple(sorted(program.targets - set(figures.calls)))
    except Exception as exception:  # Whatever it is, the others are still compiled.
        first = str(exception).strip().splitlines()[:3]
        error = f"{type(exception).__name__}: " + " ".join(first)[:400]
    return Result(
        program.title, figures, missing, error, round(time.monotonic() - begin, 1)
    )


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machine", choices=MACHINES)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    machine = MACHINES[options.machine]

    # Not before: XLA reads its flags when jax is imported.
    from scripts.aot.programs import mesh_of, programs

    mesh = mesh_of(machine)
    for program in programs(machine):
        if options.short and not program.short:
            continue
        if not re.search(options.only, program.title):
            continue
        result = compile_program(machine, mesh, program)
        print(result.to_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
