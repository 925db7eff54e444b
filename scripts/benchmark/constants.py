"""What the constants of the kernels' tuning.h are worth: their halves and doubles.

    python -m scripts.benchmark.constants [--only=REGEX] [--rounds=15] [--results=FILE]

Builds the CPU library in a copy of the tree with one constant changed, and times the
benchmark's rows that the constant has a say in beside the library as it is: processes
take turns, and a time is the least of their medians. Prints a line for each constant
and row: the time with the changed constant over the time without. Lines are kept in
`--results`, so that a sweep that was stopped goes on.

Only kernels of this machine's instruction set are built anew.
"""

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CSRC = Path("xla_ops/csrc")
_PROCESSES = 2

# Times the kernels alone, of the rows that a regular expression finds.
_TIMES = """
import json, re, sys
# An editable installation would come before this copy.
sys.meta_path[:] = [finder for finder in sys.meta_path
    if not type(finder).__module__.startswith("_editable")]
import xla_ops
from scripts.benchmark.ops import TABLES
from scripts.benchmark.timing import Settings, measure
rows, rounds, folder = sys.argv[1:]
assert xla_ops.__file__.startswith(folder), xla_ops.__file__
found = {}
for table in TABLES:
    for case in table.cases:
        name = f"{table.title}: {case.title}"
        if re.search(rows, name):
            kernel = {"kernel": case.make()["kernel"]}
            times, = measure([case._replace(make=lambda: kernel)], Settings(int(rounds)))
            found |= {f"{name}, {key[7:]}": time for key, time in times.items()
                      if key.startswith("kernel ")}
print(json.dumps(found))
"""

# Leaves objects of other instruction sets as they are, once they exist.
_LAUNCHER = """#!/bin/sh
previous=
for word in "$@"; do
  if [ "$previous" = -o ]; then
    case "$word" in
      CMakeFiles/cpu_handlers* | CMakeFiles/cpu_{isa}*) ;;
      CMakeFiles/cpu_*) [ -e "$word" ] && exec touch "$word" ;;
    esac
  fi
  previous=$word
done
exec "$@"
"""

_LAYERS = r"deform_conv2d: (128ch|256ch|512ch)"
_POOLING = "RoI pooling and NMS: (roi_align|deform_roi_pool|deform_ps)"


class Constant(NamedTuple):
    """A number to change.

    Attributes:
      family: Folder of its tuning.h.
      name: Its name.
      values: Expressions in the place of its own.
      rows: Regular expression of the benchmark's rows to time.
    """

    family: str
    name: str
    values: tuple[str, ...]
    rows: str


CONSTANTS = (
    Constant("deform_conv", "kStripRows", ("4", "16"), _LAYERS),
    Constant(
        "deform_conv",
        "kMaxTileRows",
        ("8 * kRowMultiple", "32 * kRowMultiple"),
        _LAYERS,
    ),
    Constant(
        "deform_conv",
        "kUsualTileRows",
        ("4 * kRowMultiple", "16 * kRowMultiple"),
        _LAYERS,
    ),
    Constant("deform_conv", "kTileSumsBytes", ("128 << 10", "512 << 10"), _LAYERS),
    Constant("deform_conv", "kManyTiles", ("16", "64"), _LAYERS),
    Constant("deform_conv", "kEnoughTiles", ("4", "16"), _LAYERS),
    Constant(
        "deform_conv", "kMaxRowsTogether", ("kRowMultiple", "4 * kRowMultiple"), _LAYERS
    ),
    Constant("deform_conv", "kNearKernelBytes", ("320 << 10", "1280 << 10"), _LAYERS),
    Constant("deform_conv", "kNearColumnsBytes", ("4 << 10", "16 << 10"), _LAYERS),
    Constant("deform_conv", "kPackedWhole", ("32 << 10", "128 << 10"), _LAYERS),
    Constant("deform_conv", "kPackParts", ("8", "32"), _LAYERS),
    Constant(
        "deform_conv",
        "kBackwardRows",
        ("4 * kRowMultiple", "16 * kRowMultiple"),
        _LAYERS,
    ),
    Constant("deform_conv", "kWideBlock", ("64", "256"), _LAYERS),
    Constant("deform_conv", "kNarrowBlock", ("16", "64"), _LAYERS),
    Constant("deform_conv", "kRunWeightsBytes", ("200 << 10", "800 << 10"), _LAYERS),
    Constant("deform_conv", "kTransposedOutputs", ("8", "32"), _LAYERS),
    Constant("deform_conv", "kAhead", ("6", "24"), _LAYERS),
    Constant("deform_conv", "kNearMapBytes", ("1 << 19", "1 << 21"), _LAYERS),
    Constant("roi", "kRoisOfChunk", ("2", "8"), _POOLING),
    Constant("roi", "kBlockVectors", ("2", "8"), _POOLING),
    Constant("roi", "kBlocksOfThread", ("2", "8"), _POOLING),
    Constant("roi", "kMaxBlockChannels", ("32", "128"), _POOLING),
    Constant("roi", "kMinBlockRows", ("4", "16"), _POOLING),
    Constant("roi", "kBlockBytes", ("2 << 20", "8 << 20"), _POOLING),
    Constant("roi", "kSumsPadding", ("0", "32"), _POOLING),
    Constant("nms", "kVectorsTogether", ("2", "8"), "RoI pooling and NMS: nms"),
    Constant("simd", "kMaxDepth", ("192",), _LAYERS),
    Constant("simd", "kStepsBesideVector", ("2", "8"), _LAYERS),
)


def changed(text: str, name: str, value: str) -> str:
    """Returns a header with another value of a constant.

    Raises:
      ValueError: It does not define the constant.
    """
    pattern = re.compile(rf"(constexpr [^;]*\b{name} = )([^,;]+)")
    text, count = pattern.subn(rf"\g<1>{value}", text, count=1)
    if count != 1:
        raise ValueError(f"there is no constant {name}")
    return text


class Build:
    """A copy of the tree in which the CPU library is built."""

    def __init__(self, path: Path):
        """Copies what the library and the benchmark need."""
        self.path = path
        for folder in ("xla_ops", "dcn_jax", "scripts"):
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / folder, path / folder, ignore=ignored)
        self._build = path / "build"
        isa = importlib.import_module("xla_ops._cpu").instruction_set()
        launcher = path / "launcher.sh"
        launcher.write_text(_LAUNCHER.replace("{isa}", isa))
        launcher.chmod(0o755)
        self._call(
            *("cmake", "-S", "xla_ops", "-B", "build", "-G", "Ninja"),
            *("-DXLA_OPS_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"),
            f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}",
        )

    def make(self) -> None:
        """Builds the library beside the package."""
        self._call("ninja", "-C", "build", "_cpu")
        for library in self._build.glob("**/_cpu*.so"):
            target = self.path / "xla_ops" / library.name
            if library != target:
                shutil.copy(library, target)

    def times(self, rows: str, rounds: int) -> dict[str, float]:
        """Median milliseconds of the kernel by "table: row, part", in one process."""
        folder = str(self.path)
        done = self._call(sys.executable, "-c", _TIMES, rows, str(rounds), folder)
        return json.loads(done.stdout.splitlines()[-1])

    def _call(self, *command: str) -> subprocess.CompletedProcess:
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)[:200]}\n{done.stdout}{done.stderr}")
        return done


def compare(base: Build, other: Build, rows: str, rounds: int) -> dict[str, float]:
    """Time of the second over that of the first, by row."""
    least: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for _ in range(_PROCESSES):
        for build, best in zip((base, other), least, strict=True):
            for row, time in build.times(rows, rounds).items():
                best[row] = min(time, best.get(row, time))
    return {row: least[1][row] / time for row, time in least[0].items()}


def main() -> None:
    """Sweeps, and prints what it finds."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.constants")
    parser.add_argument("--only", default="", help="constants whose name it finds")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, help="kept between calls")
    options = parser.parse_args()
    kept = options.results
    found = json.loads(kept.read_text()) if kept and kept.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        base, other = Build(Path(work) / "base"), Build(Path(work) / "other")
        base.make()
        for constant in CONSTANTS:
            if not re.search(options.only, constant.name):
                continue
            header = CSRC / constant.family / "tuning.h"
            text = (ROOT / header).read_text()
            for value in constant.values:
                key = f"{constant.family}/{constant.name} = {value}"
                if key not in found:
                    new = changed(text, constant.name, value)
                    (other.path / header).write_text(new)
                    other.make()
                    found[key] = compare(base, other, constant.rows, options.rounds)
                    if kept:
                        kept.write_text(json.dumps(found, indent=2) + "\n")
                for row, ratio in found[key].items():
                    print(f"{key}  {row}  {ratio:.3f}", flush=True)
            (other.path / header).write_text(text)


if __name__ == "__main__":
    main()
