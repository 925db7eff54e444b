"""Compiles the CUDA kernels for every architecture of a release, warnings as errors.

Prints the two tables of docs/cuda.md: what ptxas says of each kernel, and which
instructions the machine code has. Fails where a kernel spills, or lacks an instruction
that it was written for. Needs nvcc, c++filt, cuobjdump and nvdisasm, no GPU.

    python -m scripts.cuda.compile [--architectures=80,90]
"""

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.cuda.sass import Code, code_of, instruction_table, lacking, span
from scripts.cuda.symbols import KernelName, kernel_names

XLA_OPS = Path(__file__).resolve().parents[2] / "xla_ops"
CSRC = XLA_OPS / "csrc"
FIGURES = {
    "registers": r"Used (\d+) registers",
    "shared": r"(\d+) bytes smem",
    "spills": r"(\d+) bytes spill stores",
    "stack": r"(\d+) bytes stack frame",
}

# Of each kernel and architecture, the figures by name.
Figures = dict[tuple[KernelName, int], dict[str, int]]


def release_architectures(cmake: str) -> list[int]:
    """Those that a CMakeLists.txt compiles a release for."""
    (listed,) = re.findall(r"set\(cuda_architectures_release (.*)\)", cmake)
    return [int(a) for a in re.findall(r"\d+", listed)]


def own_options(cmake: str) -> dict[str, str]:
    """The compiler's options that a CMakeLists.txt gives to single files, by source."""
    pattern = r"csrc/(\w+)/cuda/(\w+)\.cu PROPERTIES COMPILE_OPTIONS (\S+)\)"
    found = re.findall(pattern, cmake)
    return {f"{family}/{stem}": option for family, stem, option in found}


def compile_kernels(
    source: Path, options: list[str], architectures: list[int], target: Path
) -> str:
    """Returns what nvcc and ptxas print."""
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command = ["nvcc", "-std=c++17", "-O3", "-c", str(source), "-Xptxas=-v"]
    command += ["-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    command += [f"-I{CSRC}", *options, *codes, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{source.name} does not compile without warnings:\n{done.stderr}")
    return done.stderr


def figures_of(output: str, source: str) -> Figures:
    """What ptxas printed of the kernels in a source file."""
    figures: dict[tuple[str, int], dict[str, int]] = collections.defaultdict(dict)
    kernel = ("", 0)
    for line in output.splitlines():
        if match := re.search(r"entry function '(.*)' for 'sm_(\d+)a?'", line):
            kernel = (match[1], int(match[2]))
        for name, pattern in FIGURES.items():
            if match := re.search(pattern, line):
                # Functions that a kernel calls follow it.
                most = max(int(match[1]), figures[kernel].get(name, 0))
                figures[kernel][name] = most
    names = kernel_names({symbol for symbol, _ in figures}, source)
    return {(names[symbol], a): found for (symbol, a), found in figures.items()}


def register_table(figures: Figures, architectures: list[int]) -> str:
    """In Markdown: a line for each kernel, over all its instances."""
    instances: dict[tuple[str, str], set[KernelName]] = collections.defaultdict(set)
    for name, _ in figures:
        instances[name.source, name.family].add(name)
    head = ["kernel", "source", "instances", *(f"sm_{a}" for a in architectures)]
    rows = [[*head, "shared", "spills", "stack"]]
    for (source, family), names in sorted(instances.items()):
        found = [value for (name, _), value in figures.items() if name in names]
        most = [
            str(max(each.get(key, 0) for each in found))
            for key in ("shared", "spills", "stack")
        ]
        registers = [
            span({figures[name, a]["registers"] for name in names})
            for a in architectures
        ]
        rows.append([f"`{family}`", source, str(len(names)), *registers, *most])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> None:
    """Prints both tables; exits with 1 where they are not as they should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--architectures", help="numbers; all of a release if not given"
    )
    chosen = parser.parse_args().architectures
    cmake = (XLA_OPS / "CMakeLists.txt").read_text()
    architectures = release_architectures(cmake)
    if chosen is not None:
        architectures = [int(a) for a in chosen.split(",")]
    own = own_options(cmake)
    figures: Figures = {}
    code: Code = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(CSRC.glob("*/cuda/*.cu")):
            # By family and file: `deform_conv/columns`.
            source = f"{path.parent.parent.name}/{path.stem}"
            target = Path(folder) / f"{path.parent.parent.name}_{path.stem}.o"
            options = [own[source]] if source in own else []
            output = compile_kernels(path, options, architectures, target)
            figures |= figures_of(output, source)
            code |= code_of(target, source)
    print(register_table(figures, architectures), end="\n\n")
    print(markdown(instruction_table(code)))
    wrong = [
        f"{name} spills on sm_{a}"
        for (name, a), found in figures.items()
        if found.get("spills", 0)
    ]
    if wrong := [*wrong, *lacking(code)]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
