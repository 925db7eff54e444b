"""How large wheels are, and how soon a fresh process has imported and computed.

    python -m scripts.benchmark.start [--rounds=3] WHEEL...

Wheels of this interpreter's version, with its other packages; they take turns. Where
other programs run beside, seconds of the processor (user) tell more than those of the
clock. A first run of each is not counted: it reads files from disk and writes bytecode.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax

from scripts.benchmark.markdown import section
from scripts.benchmark.timing import processor, thread_count

PROGRAMS = {
    "import jax": "import jax",
    "import xla_ops": "import xla_ops",
    "import dcn_jax": "import dcn_jax",
    "from dcn_jax.modules import DeformConv": "from dcn_jax.modules import DeformConv",
    "first deform_conv2d": (
        "import jax.numpy as jnp\n"
        "from xla_ops import deform_conv2d\n"
        "x, kernel = jnp.ones((1, 16, 16, 8)), jnp.ones((3, 3, 8, 8))\n"
        "offset = jnp.zeros((1, 16, 16, 1, 9, 2))\n"
        "deform_conv2d(x, offset, kernel).block_until_ready()"
    ),
}


def seconds(code: str, package: Path) -> tuple[float, float]:
    """Of the clock and of the processor, of a process in an empty folder.

    Args:
      code: What it runs.
      package: Folder of an unpacked wheel.
    """
    # Without `site` no editable install comes before the wheel.
    paths = [str(package), jax.__path__[0].removesuffix("/jax")]
    program = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=package.parent, check=True
    )
    wall = time.perf_counter() - start
    return wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def measure(wheels: Sequence[Path], rounds: int) -> list[list[str]]:
    """Rows of the table, a column for each wheel."""
    with tempfile.TemporaryDirectory() as folder:
        packages = []
        for number, wheel in enumerate(wheels):
            packages.append(Path(folder) / str(number) / "package")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(packages[-1])
        sizes = [wheel.stat().st_size for wheel in wheels]
        unpacked = [
            sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
            for package in packages
        ]
        rows = [
            ["wheel, MB", *(f"{size / 1e6:.2f}" for size in sizes)],
            ["unpacked, MB", *(f"{size / 1e6:.2f}" for size in unpacked)],
        ]
        for title, code in PROGRAMS.items():
            runs: list[list[tuple[float, float]]] = [[] for _ in wheels]
            for number in range(rounds + 1):
                for package, found in zip(packages, runs, strict=True):
                    took = seconds(code, package)
                    if number > 0:
                        found.append(took)
            for column, clock in enumerate(("clock", "user")):
                medians = (
                    statistics.median(run[column] for run in found) for found in runs
                )
                rows.append([f"{title}, s ({clock})", *(f"{m:.2f}" for m in medians)])
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    text = (
        f"{processor()}, {thread_count()} threads, Python "
        f"{sys.version.split()[0]}, jax {jax.__version__}. Medians of {given.rounds}."
    )
    headings = ["", *(wheel.name for wheel in given.wheels)]
    rows = measure(given.wheels, given.rounds)
    print(section("Size and start of wheels", text, headings, rows))


if __name__ == "__main__":
    main()
