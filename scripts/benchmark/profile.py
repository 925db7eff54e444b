"""Where the time of a train step goes, by kind of operation.

    python -m scripts.benchmark.profile [--network=NAME] [--layers=dcnv2] [--steps=3]

Traces the step of a network with ResNet-50 on one image of 800x1216, as `train.main`
has it, and prints a table: for each primitive of jax, forward and backward, how often a
step runs it and for how long. Operations that run beside one another are counted each,
so that the sum may exceed the step's wall time, which stands above the table.
"""

import argparse
import collections
import gzip
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scripts.benchmark.layers import CANVAS
from scripts.benchmark.step import random_batch
from scripts.benchmark.train_step import make_step
from train import sharding
from train.config_dict import ConfigDict
from train.configs import dcnv2

_CLASSES = 80

# An instruction with its opcode and the primitive that it is of; what holds others is
# not one of them.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?\s([\w\-]+)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"calls=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_HOLDERS = ("while", "call", "conditional")


class Kind(NamedTuple):
    """What operations have in common.

    Attributes:
      primitive: Of jax; the opcode of what the compiler has added.
      backward: Whether it belongs to a gradient.
    """

    primitive: str
    backward: bool


def kinds(program: str) -> dict[str, Kind]:
    """Returns the kind of each instruction of a compiled program, by its name."""
    found = {}
    # A fusion without a name has that of the last instruction in it that has one; what
    # is called stands above what calls it.
    last: dict[str, str] = {}
    computation = ""
    for line in program.splitlines():
        if start := _COMPUTATION.match(line):
            computation = start[1]
        instruction = _INSTRUCTION.match(line)
        if not instruction or instruction[2] in _HOLDERS:
            continue
        path, called = _OP_NAME.search(line), _CALLED.search(line)
        name = path[1] if path else last.get(called[1], "") if called else ""
        if name:
            last[computation] = name
        primitive = name.rsplit("/", 1)[-1] or instruction[2]
        found[instruction[1]] = Kind(primitive, "transpose(" in name)
    return found


def durations(folder: Path) -> Iterator[tuple[str, float]]:
    """Yields instructions and their milliseconds from the traces in a folder."""
    for file in folder.rglob("*.trace.json.gz"):
        for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]:
            if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
                yield event["args"]["hlo_op"], event["dur"] / 1e3


def table(
    of_instruction: dict[str, Kind],
    measured: Iterator[tuple[str, float]],
    steps: int,
    rows: int = 20,
) -> list[str]:
    """Returns the lines of a table, the longest first.

    Args:
      of_instruction: Kinds; what is not among them is not counted.
      measured: Instructions and milliseconds, of all steps together.
      steps: How many.
      rows: The others share one.
    """
    spent: collections.defaultdict[Kind, float] = collections.defaultdict(float)
    calls: collections.Counter[Kind] = collections.Counter()
    for instruction, milliseconds in measured:
        if kind := of_instruction.get(instruction):
            spent[kind] += milliseconds / steps
            calls[kind] += 1
    total = sum(spent.values())
    lines = [
        "| operation | pass | a step | ms a step | share |",
        "| --- | --- | --- | --- | --- |",
    ]

    def line(name: str, direction: str, count: int, milliseconds: float) -> str:
        share = 100 * milliseconds / total if total else 0
        return (
            f"| {name} | {direction} | {count / steps:.0f} | {milliseconds:.0f} "
            f"| {share:.1f}% |"
        )

    order = sorted(spent.items(), key=lambda item: -item[1])
    for kind, milliseconds in order[:rows]:
        direction = "backward" if kind.backward else "forward"
        lines.append(line(kind.primitive, direction, calls[kind], milliseconds))
    rest = [kind for kind, _ in order[rows:]]
    if rest:
        count = sum(calls[kind] for kind in rest)
        milliseconds = sum(spent[kind] for kind in rest)
        lines.append(line("others", "", count, milliseconds))
    lines.append(line("all", "", sum(calls.values()), total))
    return lines


def _batch(config: ConfigDict):
    batch = random_batch(1)
    side = config.data.mask_size
    if not side:
        return batch
    masks = jnp.ones((*batch.labels.shape, side, side), jnp.uint8)
    return batch._replace(masks=masks, mask_windows=batch.boxes)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.profile")
    networks = ("faster_rcnn", "faster_rcnn_fpn", "mask_rcnn_fpn")
    parser.add_argument("--network", choices=networks, default=networks[0])
    parser.add_argument("--layers", choices=tuple(dcnv2.LAYERS), default="dcnv2")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    config = dcnv2.make_config(
        arguments.network, dcnv2.LAYERS[arguments.layers], min(CANVAS)
    )
    train = make_step(config, _CLASSES, sharding.make_mesh(devices=jax.devices()[:1]))
    state, batch = train.start(), _batch(config)
    step = train.step.lower(state, batch).compile()
    of_instruction = kinds(step.as_text())
    state, _ = jax.block_until_ready(step(state, batch))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(arguments.steps):
                state, _ = jax.block_until_ready(step(state, batch))
        seconds = (time.perf_counter() - begin) / arguments.steps
        print(f"{arguments.network}, {arguments.layers}: {seconds:.2f} s a step\n")
        measured = durations(Path(folder))
        print("\n".join(table(of_instruction, measured, arguments.steps)))


if __name__ == "__main__":
    main()
