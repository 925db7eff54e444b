"""Reads the text of a compiled program: XLA's HLO, as `Compiled.as_text()` prints it.

There is a Python form of it only for who depends on TensorFlow's protocol buffers.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What a fusion around a custom call has beside it.
_AROUND_A_CALL = {
    *("parameter", "constant", "bitcast", "slice", "dynamic-slice"),
    *("tuple", "get-tuple-element", "dynamic-update-slice"),
}
# Bytes of an element where its name does not end in its bits.
_SIZES = {"pred": 1, "token": 0, "opaque": 0, "s4": 1, "u4": 1, "s2": 1, "u2": 1}


class ArrayType(NamedTuple):
    """Type of an array, such as bf16[2,3].

    Attributes:
      dtype: HLO's name of the element type.
      shape: Sizes, in logical order.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many there are."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """That the elements take, without padding."""
        if self.dtype in _SIZES:
            return self.elements * _SIZES[self.dtype]
        bits = re.search(r"\d+", self.dtype)
        assert bits is not None, self.dtype
        return self.elements * int(bits[0]) // 8


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
      name: Unique in the program.
      opcode: Such as "fusion" or "custom-call".
      results: Types of the array, or of all arrays of the tuple.
      operands: Names of instructions.
      attributes: What follows the operands.
    """

    name: str
    opcode: str
    results: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def bytes(self) -> int:
        """Of all results."""
        return sum(array.bytes for array in self.results)

    def computation(self, key: str) -> str | None:
        """Name of the computation that the attribute `key` refers to."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def computations(self, key: str) -> list[str]:
        """The same of an attribute that is a list."""
        found = re.search(rf"\b{key}=\{{([^}}]*)\}}", self.attributes)
        return _NAME.findall(found[1]) if found else []

    def text(self, key: str) -> str | None:
        """The attribute `key`, which is quoted."""
        found = re.search(rf'\b{key}="([^"]*)"', self.attributes)
        return found[1] if found else None

    @property
    def trips(self) -> int:
        """How often a loop runs; 1 where the compiler does not know."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else 1


class Computation(NamedTuple):
    """A function of the program.

    Attributes:
      instructions: By name, in order.
      root: The one whose value it returns.
    """

    instructions: dict[str, Instruction]
    root: Instruction

    @property
    def parameters(self) -> list[Instruction]:
        """In the order of the operands they stand for."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.attributes.split(")")[0]))


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: By name.
      entry: The one that runs.
    """

    computations: dict[str, Computation]
    entry: Computation

    def running(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """What runs, with its computation and how often; fusions are one instruction.

        All branches of a conditional are counted. A call that is fused with slices of
        its operands stands for the fusion.
        """
        yield from self._running(self.entry, 1)

    def _running(self, computation: Computation, times: int):
        for instruction in computation.instructions.values():
            if calls := self._fused_calls(instruction):
                yield from ((*call, times) for call in calls)
                continue
            yield computation, instruction, times
            inner, again = [], times
            if instruction.opcode == "while":
                again = times * instruction.trips
                inner = [instruction.computation("body")]
            elif instruction.opcode == "call":
                inner = [instruction.computation("to_apply")]
            elif instruction.opcode == "conditional":
                inner = instruction.computations("branch_computations") or [
                    instruction.computation("true_computation"),
                    instruction.computation("false_computation"),
                ]
            elif instruction.opcode == "async-start":
                inner = [instruction.computation("calls")]
            for name in inner:
                if name is not None:
                    yield from self._running(self.computations[name], again)

    def _fused_calls(
        self, instruction: Instruction
    ) -> list[tuple[Computation, Instruction]]:
        """The custom call in a fusion that reads operands of it where they lie."""
        name = instruction.computation("calls")
        if instruction.opcode != "fusion" or name is None:
            return []
        fused = self.computations[name]
        calls = [i for i in fused.instructions.values() if i.opcode == "custom-call"]
        beside = {i.opcode for i in fused.instructions.values()} - {"custom-call"}
        return [(fused, call) for call in calls] if beside <= _AROUND_A_CALL else []


def parse(text: str) -> Program:
    """Returns the program.

    Raises:
      ValueError: The text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    lines: dict[str, Instruction] | None = None
    name, root, is_entry = "", None, False
    for line in text.splitlines():
        if lines is None:
            head = _HEAD.match(line)
            if head is not None:
                lines, root = {}, None
                name, is_entry = head[2], head[1] is not None
        elif line == "}":
            assert root is not None, name
            computations[name] = Computation(lines, root)
            if is_entry:
                entry = computations[name]
            lines = None
        else:
            found = _LINE.match(line)
            if found is None:
                continue
            instruction = _instruction(found[2], found[3])
            lines[instruction.name] = instruction
            if found[1]:
                root = instruction
    if entry is None:
        raise ValueError("the text has no ENTRY computation")
    return Program(computations, entry)


def _instruction(name: str, rest: str) -> Instruction:
    """From what follows `name = `: TYPE OPCODE(OPERANDS), ATTRIBUTES."""
    end = _closing(rest, 0) if rest[0] == "(" else rest.index(" ")
    types, rest = rest[:end], rest[end:].lstrip()
    begin = rest.index("(")
    opcode = rest[:begin]
    end = _closing(rest, begin)
    inside, attributes = rest[begin + 1 : end - 1], rest[end:].lstrip(", ")
    operands: tuple[str, ...] = ()
    if opcode in ("parameter", "constant"):
        attributes = f"{inside}) {attributes}"
    else:
        operands = tuple(_NAME.findall(inside))
    results = tuple(
        ArrayType(dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(types)
    )
    return Instruction(name, opcode, results, operands, attributes)


def _closing(text: str, begin: int) -> int:
    """Index behind the bracket that closes the one at `begin`."""
    depth = 0
    for index in range(begin, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if depth == 0:
                return index + 1
    raise ValueError(f"no closing bracket: {text[:80]}")
