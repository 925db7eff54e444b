"""What explanations of the paper's ResNet-50 DCNv2 Faster R-CNN cost at 800x1216.

    python -m scripts.benchmark.explain [--only=REGEX] [--write]

Each kind runs in a process of its own: once with compilation, then once without. Memory
is how far the peak of resident memory rises in the first. Saliency regions are searched
with as many passes as `--passes` allows. A click in the viewer needs no network, but
Chromium; without it there is no such row. --write puts the table into docs/explain.md.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.explain import (
    bin_locations,
    effective_receptive_field,
    saliency_region,
    sampling_locations,
)
from dcn_jax.modules import DeformConv
from scripts.benchmark import chromium
from scripts.benchmark.layers import CANVAS
from scripts.benchmark.markdown import replace_section
from scripts.benchmark.peak_rss import peak_growth
from scripts.benchmark.viewer_click import click_seconds
from train.configs import coco_faster_rcnn
from train.tasks import TASKS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explain.md"
MARKERS = "<!-- benchmark explain: begin -->", "<!-- benchmark explain: end -->"
_SIZES = jnp.asarray([CANVAS], jnp.int32)
_ROI = (500.0, 300.0, 800.0, 500.0)
# Positions of the last map, 50x76.
_NODES = [(25, 38), (10, 20), (40, 60), (5, 70), (30, 10), (20, 50), (45, 5), (15, 40)]


def _map(model: Any, x: jax.Array) -> jax.Array:
    return model.features(x, _SIZES).levels.roi[-1]


def _representation(model: Any, x: jax.Array) -> jax.Array:
    return model.roi.represent(model.features(x, _SIZES), jnp.asarray([[_ROI]]))


def _locations(gradient: bool) -> Callable:
    return lambda model, image: sampling_locations(
        model, _map, image, _NODES[:1], gradient=gradient
    )


def _fields(count: int) -> Callable:
    return lambda model, image: effective_receptive_field(
        model, _map, image, _NODES[:count]
    )


def _bins(model: Any, image: jax.Array) -> Any:
    return bin_locations(model, _representation, image, [(0,)], gradient=True)


# Functions of model and image that run as one program.
PROGRAMS = {
    "sampling locations of three layers": _locations(False),
    "sampling locations with gradients": _locations(True),
    "bin locations with gradients": _bins,
    "receptive field of a node": _fields(1),
    "receptive fields of 8 nodes": _fields(8),
}
SALIENCY = "saliency region of a node"
CLICK = "a click in the viewer"


def detector() -> Any:
    """The network, with random weights and offsets of about two pixels."""
    config = coco_faster_rcnn.get_config("dcnv2,800")
    model: Any = TASKS[config.task].build(config, 80, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, DeformConv):
            bias: Any = module.offset_conv.bias
            bias[...] = jnp.asarray(rng.normal(0, 2, bias.shape), bias.dtype)
    return model


def measure(kind: str, passes: int) -> dict[str, float]:
    """Returns seconds of the first and a later run, bytes, and passes of a search.

    Of clicks, the later ones' median, and no bytes.
    """
    if kind == CLICK:
        with tempfile.TemporaryDirectory() as folder:
            first, *others = click_seconds(Path(folder))
        return {"first": first, "later": statistics.median(others)}
    model = detector()
    pixels = np.random.default_rng(0).uniform(0, 255, (*CANVAS, 3))
    image = jnp.asarray(pixels, jnp.float32)
    used = {}

    if kind == SALIENCY:

        def run():
            found = saliency_region(
                model, _map, image, _NODES[0], max_passes=passes, batch_size=1
            )
            used["passes"] = found.passes

    else:
        program = nnx.jit(PROGRAMS[kind])

        def run():
            jax.block_until_ready(program(model, image))

    def seconds() -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    growth, first = peak_growth(seconds)
    return {"first": first, "later": seconds(), "bytes": growth, **used}


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| | first time, s | then, s | peak memory, MiB |",
        "| --- | --- | --- | --- |",
    ]
    for kind, figures in found.items():
        if "passes" in figures:
            kind = f"{kind}, {figures['passes']:.0f} passes"
        first, later = (f"{figures[name]:.3g}" for name in ("first", "later"))
        memory = f"{figures['bytes'] / 2**20:.0f}" if "bytes" in figures else ""
        lines.append(f"| {kind} | {first} | {later} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Measures each kind in a fresh process, and shows or writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression of kinds")
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT.name}")
    parser.add_argument("--kind", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.passes)))
        return
    if options.write and options.only:
        parser.error("--write needs all kinds; it cannot go with --only")
    found = {}
    for kind in (*PROGRAMS, SALIENCY, CLICK):
        if kind == CLICK and not chromium.is_installed():
            print(f"{CLICK}: not measured, {chromium.HOW}", file=sys.stderr)
        elif re.search(options.only, kind):
            command = [sys.executable, "-m", "scripts.benchmark.explain"]
            command += [f"--kind={kind}", f"--passes={options.passes}"]
            output = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            found[kind] = json.loads(output.splitlines()[-1])
            print(kind, found[kind], file=sys.stderr)
    if options.write:
        replace_section(DOCUMENT, table(found), *MARKERS)
    else:
        print(table(found))


if __name__ == "__main__":
    main()
