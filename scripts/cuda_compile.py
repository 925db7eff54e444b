"""Compiles the CUDA kernels for every architecture of a release, warnings as errors.

Prints what ptxas says of each kernel: registers on each architecture, spills, stack.
Needs nvcc, no GPU.

    python -m scripts.cuda_compile [--architectures=80,90]
"""

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "xla_ops" / "csrc"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


def compile_kernels(source: Path, architectures: list[int]) -> str:
    """Returns what nvcc and ptxas print."""
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    with tempfile.TemporaryDirectory() as directory:
        command = ["nvcc", "-std=c++17", "-O3", "-c", str(source), "-Xptxas=-v"]
        command += ["-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
        command += [f"-I{CSRC}", *codes, "-o", f"{directory}/kernels.o"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{source.name} does not compile without warnings:\n{done.stderr}")
    names = ["c++filt"]
    return subprocess.run(
        names, input=done.stderr, capture_output=True, text=True, check=True
    ).stdout


def kernel_name(symbol: str) -> str:
    """`columns_kernel<float, 4>` of ptxas's demangled name."""
    name = symbol.replace("(anonymous namespace)::", "").replace("xla_ops::", "")
    name = name.replace("cuda::", "").split("(")[0]
    return name.removeprefix("void ").replace("unsigned ", "u")


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--architectures", default=",".join(map(str, ARCHITECTURES)), help="numbers"
    )
    architectures = [int(a) for a in parser.parse_args().architectures.split(",")]
    registers: dict[str, dict[int, int]] = collections.defaultdict(dict)
    stack: dict[str, int] = collections.defaultdict(int)
    spills: dict[str, int] = collections.defaultdict(int)
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        kernel, architecture = "", 0
        for line in compile_kernels(source, architectures).splitlines():
            if match := re.search(r"entry function '(.*)' for 'sm_(\d+)a?'", line):
                kernel, architecture = kernel_name(match[1]), int(match[2])
            elif match := re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill", line
            ):
                stack[kernel] = max(stack[kernel], int(match[1]))
                spills[kernel] = max(spills[kernel], int(match[2]))
            elif match := re.search(r"Used (\d+) registers", line):
                registers[kernel][architecture] = int(match[1])
    head = ["kernel", *(f"sm_{a}" for a in architectures), "spills", "stack"]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for kernel, used in registers.items():
        cells = [f"`{kernel}`", *(str(used.get(a, "-")) for a in architectures)]
        print(
            "| " + " | ".join([*cells, f"{spills[kernel]}", f"{stack[kernel]}"]) + " |"
        )


if __name__ == "__main__":
    main()
