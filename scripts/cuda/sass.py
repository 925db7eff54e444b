"""The instructions that count in the machine code of CUDA kernels.

In it LDG loads from global memory, STG stores, RED and REDG add in memory.
"""

import collections
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from scripts.cuda.symbols import KernelName, kernel_names

# Of each kernel and architecture, how often each instruction stands in it.
Code = dict[tuple[KernelName, int], collections.Counter[str]]

_OPCODE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)")


def code_of(target: Path, source: str) -> Code:
    """Reads an object file compiled from the source file `source`."""
    counts: dict[tuple[str, int], collections.Counter[str]] = {}
    command = ["cuobjdump", "--dump-sass", str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        architecture, count = 0, collections.Counter()
        for line in process.stdout or ():
            if match := _OPCODE.match(line):
                count[match[1]] += 1
            elif match := re.match(r"\s*arch = sm_(\d+)", line):
                architecture = int(match[1])
            elif match := re.match(r"\s*Function : (\S+)", line):
                count = counts[match[1], architecture] = collections.Counter()
    if process.returncode or not counts:
        raise RuntimeError(f"cuobjdump finds no code in {target}")
    names = kernel_names({symbol for symbol, _ in counts}, source)
    return {(names[symbol], a): count for (symbol, a), count in counts.items()}


def reads_runs(name: KernelName) -> bool:
    """Whether an instance reads features 16 bytes at a time: `<float, 4>`, `true`."""
    return bool(name.arguments) and name.arguments[-1] in ("true", "2", "4", "8")


def of_16_bytes(count: collections.Counter[str], opcode: str) -> int:
    """Loads or stores of 16 bytes."""
    pattern = rf"{opcode}\..*128"
    return sum(n for name, n in count.items() if re.match(pattern, name))


def matching(count: collections.Counter[str], pattern: str) -> set[str]:
    """The instructions that match, without what all of them have."""
    found = {name for name in count if re.match(pattern, name)}
    return {re.sub(r"(\.FTZ)?\.RN\.STRONG\.GPU", "", name) for name in found}


def span(values: Iterable[int]) -> str:
    """`40-64`, or `40` where all are the same."""
    ordered = sorted(set(values))
    return "-".join(map(str, dict.fromkeys((ordered[0], ordered[-1]))))


def instruction_table(code: Code) -> list[list[str]]:
    """Rows, for the instances that read 16 bytes at a time; the first is the head."""
    rows = [["kernel", "architectures", "LDG", "STG", "others"]]
    families: dict[str, dict] = collections.defaultdict(dict)
    for (name, a), count in sorted(code.items()):
        if reads_runs(name):
            facts = families[name.family].setdefault(a, (set(), set(), set()))
            for place, opcode in enumerate(("LDG", "STG")):
                facts[place].add(of_16_bytes(count, opcode))
            facts[2].update(matching(count, "RED|ATOMG"))
    for family, by_architecture in sorted(families.items()):
        # Architectures with the same facts share a line.
        lines: dict[tuple, list[int]] = collections.defaultdict(list)
        for a, facts in sorted(by_architecture.items()):
            lines[tuple(map(frozenset, facts))].append(a)
        for facts, architectures in lines.items():
            counts = [span(each) for each in facts[:2]]
            others = ", ".join(f"`{name}`" for name in sorted(facts[2]))
            names = ", ".join(map(str, architectures))
            rows.append([f"`{family}`", names, *counts, others])
    return rows


def lacking(code: Code) -> list[str]:
    """Says where an instruction is not that should be."""
    wrong = []
    for (name, a), count in code.items():
        if not reads_runs(name):
            continue
        missing = [op for op in ("LDG", "STG") if not of_16_bytes(count, op)]
        if name.family == "bin_gradient_kernel" and "STG" in missing:
            missing.remove("STG")  # It writes few numbers of a bin.
        if name.family == "gather_kernel" and name.arguments[1].endswith("F16"):
            # Of a run of float32 it makes 8 bytes; one of bfloat16 stays what it is.
            missing = [op for op in missing if op != "STG"]
        adds_floats = name.family == "visit_kernel" and name.arguments[0] != "double"
        if adds_floats and a >= 90 and not matching(count, "RED.*F32x4"):
            missing.append("F32x4")
        wrong += [f"{name} has no {opcode} on sm_{a}" for opcode in missing]
    return wrong
