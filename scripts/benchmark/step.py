"""Times a train step and a detection of the paper's Faster R-CNN, beside torchvision.

    python -m scripts.benchmark.step [--torch-python=PYTHON] [--write]

Of the rows of train/configs/coco_faster_rcnn.py with ResNet-50, on a random image with
random boxes. The counterparts of `regular` and `dcnv2` are of torchvision's parts
(`scripts.benchmark.torch_network`), with the same weights; it is checked first that
they detect the same. All take turns step by step, so that a busy moment of the machine
falls on all of them; a ratio is taken within a round, and the table shows medians over
rounds. docs/benchmarks.md holds the result, says what differs, and how torchvision gets
an interpreter of its own; without one its columns are left out.
"""

import argparse
import contextlib
import datetime
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dcn_jax.detection.records import Batch
from scripts.benchmark.layers import CANVAS
from scripts.benchmark.markdown import replace_family, section
from scripts.benchmark.ops import DOCUMENT
from scripts.benchmark.timing import family, library_versions, processor, thread_count
from scripts.benchmark.train_step import make_detection, make_step
from scripts.benchmark.twin_worker import (
    PARTS,
    TwinWorker,
    check_detections,
    check_losses,
)
from scripts.benchmark.typical_weights import make_typical
from train import sharding
from train.config_dict import ConfigDict
from train.configs import coco_faster_rcnn
from train.skeleton import Variables, build_skeleton, variables_of
from train.tasks import TASKS

ROWS = ("regular", "dcnv2", "dcnv2_mimic")
# Those that torchvision's parts make.
TWINS = ROWS[:2]

_CLASSES = 80
_BOXES = 20
# So small that every step does the same work.
_RATE = 1e-7
# Of torchvision's heads; the rows have 1.
_LOSS_BETA = 1 / 9


class Measured(NamedTuple):
    """What was found.

    Attributes:
      rounds: In each, seconds by "side row, part".
      memory: Bytes beside arguments and results that XLA plans for a train step, by
        row.
    """

    rounds: list[dict[str, float]]
    memory: dict[str, int]


class Network:
    """A row's network of ours, compiled for an image, and its weights.

    Args:
      config: Of the row.
      batch: Of one image.
    """

    def __init__(self, config: ConfigDict, batch: Batch):
        self.batch = batch
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        train = make_step(config, _CLASSES, mesh)
        skeleton = build_skeleton(config, TASKS[config.task], _CLASSES)

        @jax.jit
        def typical(variables, batch):
            model = skeleton.model(variables)
            make_typical(model, batch.images, batch.sizes, jax.random.key(0))
            return variables_of(model)

        state = train.start()
        variables = typical(state.variables, batch)
        places = jax.tree.map(lambda leaf: leaf.sharding, train.state.variables)
        self.state = state._replace(variables=jax.device_put(variables, places))
        self._step = train.step.lower(self.state, batch).compile()
        self._predict, _ = make_detection(config, _CLASSES, mesh)
        self.memory = self._step.memory_analysis().temp_size_in_bytes

    def train_step(self) -> dict[str, jax.Array]:
        """Takes a step; returns its metrics."""
        self.state, metrics = jax.block_until_ready(self._step(self.state, self.batch))
        return metrics

    def detection(self, variables: Variables | None = None) -> Any:
        """Detects, with other variables where they are given."""
        variables = self.state.variables if variables is None else variables
        found = self._predict(variables, self.batch.images, self.batch.sizes)
        return jax.block_until_ready(found)

    def seconds(self, part: str) -> float:
        """Of one of PARTS."""
        run = {"train step": self.train_step, "detection": self.detection}[part]
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def random_batch(batch: int, canvas: tuple[int, int] = CANVAS) -> Batch:
    """Images of noise with boxes of 20 to 400 pixels, or half the canvas."""
    rng = np.random.default_rng(0)
    size = rng.uniform(20, min(400, min(canvas) / 2), (batch, _BOXES, 2))
    corner = rng.uniform(0, 1, (batch, _BOXES, 2)) * (np.array(canvas[::-1]) - size)
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (batch, *canvas, 3)), jnp.uint8),
        sizes=jnp.tile(jnp.array([canvas], jnp.int32), (batch, 1)),
        boxes=jnp.asarray(np.concatenate([corner, corner + size], -1), jnp.float32),
        labels=jnp.asarray(rng.integers(1, _CLASSES + 1, (batch, _BOXES)), jnp.int32),
        valid=jnp.ones((batch, _BOXES), bool),
    )


def row_config(row: str) -> ConfigDict:
    """A row's configuration, for steps that a counterpart can take too."""
    config = coco_faster_rcnn.get_config(f"{row},{min(CANVAS)}")
    config.optim.lr = _RATE
    config.model.box.loss_beta = _LOSS_BETA
    return config


def with_small_offsets(variables: Variables) -> Variables:
    """Variables under which two sides that round differently still agree.

    Where offsets deviate by two pixels, a deformable layer makes of a small difference
    one several times as large, and there are thirteen.
    """
    return {
        path: 0.1 * value if path.endswith(".offset_conv.kernel") else value
        for path, value in variables.items()
    }


def parts_of(config: ConfigDict) -> tuple[str, ...]:
    """What is timed: mimicking is for training alone."""
    return PARTS[:1] if config.model.mimicking else PARTS


def measure(
    configs: Mapping[str, ConfigDict],
    batch: Batch,
    steps: int,
    twin: TwinWorker | None = None,
) -> Measured:
    """Times networks, and the counterparts of `TWINS`.

    Args:
      configs: By row.
      batch: Of one image.
      steps: Rounds; in each everything has its turn.
      twin: Has torchvision; None leaves it out.

    Raises:
      ValueError: A counterpart does something else.
    """
    networks = {}
    turns = {}
    for row, config in tqdm(configs.items(), desc="compile, check", unit="row"):
        network = networks[row] = Network(config, batch)
        metrics = network.train_step()
        network.detection()
        theirs = twin if row in TWINS else None
        if theirs is not None:
            _load_checked(theirs, row, config, network, metrics)
        for part in parts_of(config):
            turns[f"ours {row}, {part}"] = network, (part,)
            if theirs is not None:
                turns[f"torchvision {row}, {part}"] = theirs, (row, part)
    rounds = []
    for _ in tqdm(range(steps), desc="time", unit="round"):
        found = {}
        for name, (side, arguments) in turns.items():
            seconds = side.seconds if isinstance(side, Network) else side.time
            found[name] = seconds(*arguments)
        rounds.append(found)
    return Measured(rounds, {row: network.memory for row, network in networks.items()})


def _load_checked(
    twin: TwinWorker,
    row: str,
    config: ConfigDict,
    network: Network,
    metrics: Mapping[str, jax.Array],
) -> None:
    """Makes a counterpart, warmed up, and compares it with a network after a step."""
    variables, batch = network.state.variables, network.batch
    calm = with_small_offsets(variables)
    twin.load(row, config, _CLASSES, calm, batch)
    detections = jax.device_get(network.detection(calm))
    check_detections(row, detections, twin.detections(row))
    twin.load(row, config, _CLASSES, variables, batch)
    for part in PARTS[::-1]:
        twin.time(row, part)
    losses = {name.removeprefix("loss/"): float(v) for name, v in metrics.items()}
    check_losses(row, losses, twin.losses(row))


def table(title: str, text: str, rows: Sequence[str], measured: Measured) -> str:
    """The Markdown of what was measured, without columns that have no figures."""
    rounds = measured.rounds
    cells: dict[str, list[str]] = {}
    labels = [
        f"{row}, {part}"
        for row in rows
        for part in PARTS
        if f"ours {row}, {part}" in rounds[0]
    ]
    for label in labels:
        row, _, part = label.partition(", ")
        ours, theirs = f"ours {label}", f"torchvision {label}"
        memory = f"{measured.memory[row] / 2**30:.1f}" if part == PARTS[0] else ""
        columns = {
            "ours": _median(rounds, ours),
            "torchvision": _median(rounds, theirs),
            "ours / torchvision": _median(rounds, ours, theirs),
            "ours / torchvision's regular": _median(
                rounds, ours, f"torchvision regular, {part}"
            ),
            "ours / our regular": _median(rounds, ours, f"ours regular, {part}"),
            "ours / our dcnv2": _median(rounds, ours, f"ours dcnv2, {part}"),
            "temporary memory, GiB": memory,
        }
        for name, cell in columns.items():
            cells.setdefault(name, []).append(cell)
    cells = {name: column for name, column in cells.items() if any(column)}
    lines = [
        [label, *(column[i] for column in cells.values())]
        for i, label in enumerate(labels)
    ]
    return section(title, text, ["seconds", *cells], lines)


def _median(rounds: Sequence[Mapping[str, float]], over: str, under: str = "") -> str:
    if over not in rounds[0] or (under and under not in rounds[0]) or over == under:
        return ""
    divisors = [found[under] if under else 1.0 for found in rounds]
    pairs = zip(rounds, divisors, strict=True)
    return f"{statistics.median(found[over] / by for found, by in pairs):.2f}"


def conditions(steps: int, canvas: Sequence[int], twin: TwinWorker | None) -> str:
    """What the figures were measured with."""
    versions = library_versions(twin)
    settings = os.environ.get("GLIBC_TUNABLES", "")
    return (
        f"{processor()}, {thread_count()} threads"
        f"{f', GLIBC_TUNABLES={settings}' if settings else ''}. "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. "
        f"One image of {canvas[0]}x{canvas[1]}, float32. Rounds: {steps}, whose "
        f"medians these are; {datetime.date.today().isoformat()}."
    )


def main() -> None:
    """Measures, and prints or writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch-python", help="interpreter that has torch and torchvision"
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--steps", type=int, default=3, help="rounds")
    parser.add_argument(
        "--canvas",
        nargs=2,
        type=int,
        default=CANVAS,
        metavar=("HEIGHT", "WIDTH"),
        help="multiples of 16",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"into docs/{DOCUMENT.name}, where tables of other processors stay",
    )
    options = parser.parse_args()
    canvas = tuple(options.canvas)
    if options.write and (tuple(options.rows) != ROWS or canvas != CANVAS):
        parser.error("--write needs all rows; it cannot go with --rows or --canvas")
    with contextlib.ExitStack() as stack:
        twin = None
        if options.torch_python is not None:
            worker = TwinWorker(options.torch_python, thread_count())
            twin = stack.enter_context(worker)
        text = conditions(options.steps, canvas, twin)
        configs = {row: row_config(row) for row in options.rows}
        measured = measure(configs, random_batch(1, canvas), options.steps, twin)
    text = table(f"On {family()}", text, options.rows, measured)
    if options.write:
        replace_family(DOCUMENT, text, "step", family())
    else:
        print(text)


if __name__ == "__main__":
    main()
