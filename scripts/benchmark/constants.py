"""What the constants of the kernels' tuning.h are worth: their halves and doubles.

    python -m scripts.benchmark.constants [--only=REGEX] [--rounds=21] [--results=FILE]

Builds the CPU library in a copy of the tree with one constant changed, under names of
its own, and loads it beside the library as it is: in one process both take turns call
by call over the benchmark's rows that the constant has a say in. Prints a line for each
value and row: the median of the time with it over the time without. Lines are kept in
`--results`, so that a sweep that was stopped goes on.

Only kernels of this machine's instruction set are built anew. The first line compares
the library with a copy of itself: what is nearer to 1 than that says nothing.
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

# Loads two trees, and times the kernels of the rows that a regular expression finds.
_RATIOS = """
import importlib, json, re, statistics, sys
from scripts.benchmark.constants import clear_modules
rows, rounds, *folders = sys.argv[1:]
kernels = []
for folder in folders:
    clear_modules()
    sys.path.insert(0, folder)
    ops = importlib.import_module("scripts.benchmark.ops")
    kernels.append({
        f"{table.title}: {case.title}": case.make()["kernel"]
        for table in ops.TABLES
        for case in table.cases
        if re.search(rows, f"{table.title}: {case.title}")
    })
    sys.path.remove(folder)
timing = importlib.import_module("scripts.benchmark.timing")
found = {}
for row, base in kernels[0].items():
    both = base, kernels[1][row]
    turns = [timing.make_turns("kernel", kernel, None) for kernel in both]
    for part in turns[0]:
        ratios = []
        for _ in range(int(rounds)):
            before, after, again = (turns[i][part]() for i in (0, 1, 0))
            ratios.append(2 * after / (before + again))
        found[f"{row}, {part.removeprefix('kernel ')}"] = statistics.median(ratios)
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
# A value that it has: how far the noise goes.
_UNCHANGED = Constant("deform_conv", "kAhead", ("12",), f"{_LAYERS}|{_POOLING}")


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
    """A copy of the tree in which the CPU library is built.

    Args:
      path: Where to.
      package: Name in the place of "xla_ops", also of its custom calls: a process keeps
        one module of a name.
    """

    def __init__(self, path: Path, package: str):
        self.path, self._package = path, package
        for folder in ("xla_ops", "dcn_jax", "scripts"):
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / folder, path / folder, ignore=ignored)
        for file in path.glob("**/*.py"):
            text = re.sub(r"\bxla_ops\b", package, file.read_text())
            file.write_text(text.replace('"dcn_jax.', f'"{package}.'))
        for file in path.glob("xla_ops/**/*.cc"):
            file.write_text(file.read_text().replace('"dcn_jax.', f'"{package}.'))
        (path / "xla_ops").rename(path / package)
        isa = importlib.import_module("xla_ops._cpu").instruction_set()
        launcher = path / "launcher.sh"
        launcher.write_text(_LAUNCHER.replace("{isa}", isa))
        launcher.chmod(0o755)
        _call(
            path,
            *("cmake", "-S", package, "-B", "build", "-G", "Ninja"),
            *("-DXLA_OPS_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"),
            f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}",
        )

    def make(self) -> None:
        """Builds the library beside the package."""
        _call(self.path, "ninja", "-C", "build", "_cpu")

    def set(self, constant: Constant, value: str) -> None:
        """Gives a constant another value."""
        header = Path("csrc") / constant.family / "tuning.h"
        text = (ROOT / "xla_ops" / header).read_text()
        (self.path / self._package / header).write_text(
            changed(text, constant.name, value)
        )

    def restore(self, constant: Constant) -> None:
        """Gives all constants of its header their own values."""
        header = Path("csrc") / constant.family / "tuning.h"
        shutil.copy(ROOT / "xla_ops" / header, self.path / self._package / header)


def compare(base: Build, other: Build, rows: str, rounds: int) -> dict[str, float]:
    """Time of the second over that of the first, by row."""
    folders = str(base.path), str(other.path)
    command = sys.executable, "-c", _RATIOS, rows, str(rounds), *folders
    return json.loads(_call(base.path, *command).splitlines()[-1])


def clear_modules() -> None:
    """Forgets what is imported by the same names from both trees.

    And where an editable installation has it.
    """
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if not type(finder).__module__.startswith("_editable")
    ]
    for name in list(sys.modules):
        if name.split(".")[0] in ("dcn_jax", "scripts"):
            del sys.modules[name]


def _call(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Sweeps, and prints what it finds."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.constants")
    parser.add_argument("--only", default="", help="constants whose name it finds")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--results", type=Path, help="kept between calls")
    options = parser.parse_args()
    kept = options.results
    found = json.loads(kept.read_text()) if kept and kept.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        base = Build(Path(work) / "base", "base_ops")
        other = Build(Path(work) / "other", "other_ops")
        base.make()
        for constant in (_UNCHANGED, *CONSTANTS):
            if not re.search(options.only, constant.name):
                continue
            for value in constant.values:
                key = f"{constant.family}/{constant.name} = {value}"
                if key not in found:
                    other.set(constant, value)
                    other.make()
                    found[key] = compare(base, other, constant.rows, options.rounds)
                    if kept:
                        kept.write_text(json.dumps(found, indent=2) + "\n")
                for row, ratio in found[key].items():
                    print(f"{key}  {row}  {ratio:.3f}", flush=True)
            other.restore(constant)


if __name__ == "__main__":
    main()
