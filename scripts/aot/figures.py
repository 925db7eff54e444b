"""What a compiled program asks of its device, counted from its instructions."""

import collections
import re
from collections.abc import Mapping
from typing import NamedTuple

from scripts.aot.hlo import Computation, Instruction, Program
from scripts.aot.machines import Rates

OURS = "dcn_jax."
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
# What only moves or rewrites its operands, by the opcode at the end of a kernel.
MOVES = ("copy", "transpose", "convert", "concatenate")
# These are no kernels: names of values, or marks of what runs elsewhere.
_FREE = {
    "add-dependency", "after-all", "async-done", "async-start", "async-update",
    "bitcast", "call", "conditional", "constant", "copy-done", "get-tuple-element",
    "opt-barrier", "parameter", "partition-id", "replica-id", "tuple", "while",
}  # fmt: skip
_VIEWS = ("bitcast", "reshape", "get-tuple-element")
# They read as much of their first operand as they return.
_SLICES = ("dynamic-slice", "slice", "gather")
# Of a product in XLA's own form, and in cuBLAS's.
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[:=]\s*[\[{]([^\]}]*)')
# cuBLAS and cuDNN return memory that they work in, beside what they compute.
_WORKSPACES = ("s8", "u8")


class Figures(NamedTuple):
    """Of a program, on each of its devices.

    Attributes:
      temporary: Bytes that it needs beside its arguments and results.
      collectives: How many run, by name.
      calls: Custom calls that run, by target.
      moved: Bytes that kernels write which only move or rewrite, by `MOVES`.
      bytes: That kernels read and write, at least.
      operations: Of its products; multiplication and addition are two.
      least: Seconds that the kernels take at least, one after another.
      least_of_products: Seconds that the products alone take at least.
    """

    temporary: int
    collectives: dict[str, int]
    calls: dict[str, int]
    moved: dict[str, int]
    bytes: int
    operations: float
    least: float
    least_of_products: float

    @property
    def roofline(self) -> float:
        """Share of the least time in which products could be computed."""
        return self.least_of_products / self.least if self.least else 0.0


class Kernel(NamedTuple):
    """One instruction that runs on the device.

    Attributes:
      name: Of the instruction.
      kind: Target of a custom call; else the opcode, of a fusion that of its result.
      times: How often it runs.
      read: Bytes, each time.
      written: The same.
      operations: Of its products, each time, by HLO's name of the operands' type.
      source: What it was made from, in the program as traced.
    """

    name: str
    kind: str
    times: int
    read: int
    written: int
    operations: Mapping[str, float]
    source: str

    def least(self, rates: Rates) -> float:
        """Seconds that it takes at least, each time."""
        products = sum(
            count / rates.products(dtype) for dtype, count in self.operations.items()
        )
        return max(products, (self.read + self.written) / rates.memory)


def figures(program: Program, temporary: int, rates: Rates) -> Figures:
    """Counts.

    Args:
      program: As compiled.
      temporary: Bytes, from the compiler's plan of memory.
      rates: Of the device.
    """
    collectives: collections.Counter[str] = collections.Counter()
    for _, instruction, times in program.running():
        name = instruction.opcode.removesuffix("-start")
        if name in COLLECTIVES:
            collectives[name] += times
    calls: collections.Counter[str] = collections.Counter()
    moved: collections.Counter[str] = collections.Counter()
    total, operations, least, of_products = 0, 0.0, 0.0, 0.0
    for kernel in kernels(program):
        if kernel.kind.startswith((OURS, "__")) or "$" in kernel.kind:
            calls[kernel.kind] += kernel.times
        elif kernel.kind in MOVES:
            moved[kernel.kind] += kernel.times * kernel.written
        total += kernel.times * (kernel.read + kernel.written)
        least += kernel.times * kernel.least(rates)
        for dtype, count in kernel.operations.items():
            operations += kernel.times * count
            of_products += kernel.times * count / rates.products(dtype)
    return Figures(
        temporary,
        dict(sorted(collectives.items())),
        dict(sorted(calls.items())),
        {name: moved[name] for name in MOVES},
        total,
        operations,
        least,
        of_products,
    )


def kernels(program: Program) -> list[Kernel]:
    """Everything that runs on the device, but collectives."""
    found = []
    for computation, instruction, times in program.running():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.removesuffix("-start") in COLLECTIVES:
            continue
        if opcode.removesuffix("-done") in COLLECTIVES:
            continue
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        found.append(
            Kernel(
                instruction.name,
                _kind(program, instruction),
                times,
                _read(program, computation, instruction),
                _written(program, computation, instruction),
                _operations(program, computation, instruction),
                source[1] if source else "",
            )
        )
    return found


def _kind(program: Program, instruction: Instruction) -> str:
    if instruction.opcode == "custom-call":
        return instruction.text("custom_call_target") or "custom-call"
    fused = _fused(program, instruction)
    if fused is None:
        return instruction.opcode.removesuffix("-start")
    kinds = {_behind_views(fused, root).opcode for root in _roots(fused)}
    return "+".join(sorted(kinds))


def _fused(program: Program, instruction: Instruction) -> Computation | None:
    if instruction.opcode != "fusion":
        return None
    name = instruction.computation("calls")
    assert name is not None
    return program.computations[name]


def _roots(computation: Computation) -> list[Instruction]:
    """What makes the results; a tuple has several."""
    root = computation.root
    if root.opcode != "tuple":
        return [root]
    return [computation.instructions[name] for name in root.operands]


def _behind_views(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in _VIEWS:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _operands(computation: Computation, instruction: Instruction) -> list[Instruction]:
    return [computation.instructions[name] for name in instruction.operands]


def _read(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Bytes of the operands; of one of which a kernel reads slices, those alone."""
    operands = _operands(computation, instruction)
    fused = _fused(program, instruction)
    if fused is None:
        if instruction.opcode in _SLICES:
            return instruction.bytes + sum(o.bytes for o in operands[1:])
        if instruction.opcode == "dynamic-update-slice":
            return operands[1].bytes
        return sum(o.bytes for o in operands)
    return sum(_read_of(fused, parameter) for parameter in fused.parameters)


def _read_of(fused: Computation, parameter: Instruction) -> int:
    users = [i for i in fused.instructions.values() if parameter.name in i.operands]
    total = 0
    for user in users:
        first = user.operands[0] == parameter.name
        if first and user.opcode in _SLICES:
            total += user.bytes
        elif not (first and user.opcode == "dynamic-update-slice"):
            return parameter.bytes
    return min(total, parameter.bytes)


def _written(
    program: Program, computation: Computation, instruction: Instruction
) -> int:
    """Bytes of the results, but workspaces; of an update in place, those of it."""
    if instruction.opcode == "custom-call":
        results = instruction.results
        if len(results) > 1 and results[-1].dtype in _WORKSPACES:
            results = results[:-1]
        return sum(array.bytes for array in results)
    fused = _fused(program, instruction)
    if fused is None:
        if instruction.opcode == "dynamic-update-slice":
            return _operands(computation, instruction)[1].bytes
        return instruction.bytes
    total = 0
    for root in _roots(fused):
        made = _behind_views(fused, root)
        if made.opcode == "dynamic-update-slice":
            made = _operands(fused, made)[1]
        total += made.bytes
    return total


# Products


def _operations(
    program: Program, computation: Computation, instruction: Instruction
) -> dict[str, float]:
    """Of all products in a kernel, by the type of what is multiplied."""
    fused = _fused(program, instruction)
    counted: dict[str, float] = collections.defaultdict(float)
    if fused is None:
        count = _operations_of(computation, instruction)
        if count:
            counted[_operands(computation, instruction)[0].results[0].dtype] += count
        return dict(counted)
    for inner in fused.instructions.values():
        for dtype, count in _operations(program, fused, inner).items():
            counted[dtype] += count
    return dict(counted)


def _operations_of(computation: Computation, instruction: Instruction) -> float:
    target = instruction.text("custom_call_target") or ""
    if instruction.opcode == "dot" or target.startswith("__cublas$"):
        return _of_dot(computation, instruction)
    if instruction.opcode == "convolution" or target.startswith("__cudnn$conv"):
        return _of_convolution(computation, instruction)
    return 0.0


def _of_dot(computation: Computation, instruction: Instruction) -> float:
    left = _operands(computation, instruction)[0].results[0]
    contracted = _CONTRACTED.search(instruction.attributes)
    size = 1
    for axis in re.findall(r"\d+", contracted[1] if contracted else ""):
        size *= left.shape[int(axis)]
    return 2.0 * instruction.results[0].elements * size


def _of_convolution(computation: Computation, instruction: Instruction) -> float:
    """Each output takes one product with each weight of its feature."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, instruction
    operands = [o.results[0] for o in _operands(computation, instruction)]
    target = instruction.text("custom_call_target") or ""
    output, kernel = instruction.results[0], operands[1]
    if target == "__cudnn$convBackwardInput":
        output = operands[0]
    elif target == "__cudnn$convBackwardFilter":
        output, kernel = operands[1], instruction.results[0]
    features = kernel.shape[labels[2].index("o")]
    return 2.0 * output.elements * kernel.elements / features
