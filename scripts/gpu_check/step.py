"""The stages that train a Faster R-CNN (DCNv2) on the GPU.

    python -m scripts.gpu_check.step check|time [--emulated]

"check" takes a step of a small one at the highest precision, beside the same step by
the CPU's kernels in a process of its own. "time" takes steps of the paper's ResNet-50
at 800x1216, for their time and memory. Only of `dcn_jax` and optax: what `train`
imports may not be installed here.
"""

import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dcn_jax.detection.box_head import RoISampling
from dcn_jax.detection.records import Batch
from dcn_jax.detection.rpn import AnchorSampling, Selection
from dcn_jax.detection.two_stage import TwoStage
from dcn_jax.networks import faster_rcnn
from scripts.benchmark.layers import CANVAS
from scripts.gpu_check.runner import seconds_left

# Losses are sums of rounded numbers in another order. Those of the second stage depend
# on proposals, which may change places where their scores are close.
_TOLERANCES = {"rpn": 1e-3, "other": 2e-2}
_ON_CPU = "--on-cpu"
_SMALL_STAGES = dict(
    neck=dict(features=32),
    rpn=dict(
        features=32,
        anchor_sizes=(16, 32, 64),
        sampling=AnchorSampling(samples=64),
        train=Selection(300, 100),
        test=Selection(300, 100),
    ),
    pool=dict(output_size=7, hidden_features=32),
    box=dict(features=64),
    sampling=RoISampling(samples=64),
)
_PAPER_STAGES = dict(neck={}, rpn={}, pool=dict(output_size=7), box={})


class Detector(NamedTuple):
    """What is trained, on which images.

    Attributes:
      backbone: Arguments of `ResNet`.
      stages: Of the other stages, as `faster_rcnn` takes them.
      num_classes: Foreground classes.
      images: In a batch.
      size: Height and width of the images.
    """

    backbone: dict[str, Any]
    stages: dict[str, Any]
    num_classes: int
    images: int
    size: tuple[int, int]


SMALL = Detector(
    dict(depths=(1, 1, 1, 1), stem_features=16, norm="group_norm"),
    _SMALL_STAGES,
    num_classes=3,
    images=2,
    size=(128, 160),
)
PAPER = Detector(
    dict(depths=(3, 4, 6, 3), frozen_stages=2), _PAPER_STAGES, 80, 2, CANVAS
)
TINY = SMALL._replace(
    backbone=dict(depths=(1, 1, 1, 1), stem_features=4, norm="group_norm"),
    size=(64, 64),
)


def build(detector: Detector, dtype: Any) -> TwoStage:
    """The module, with convolutions deformable and modulated from conv3 on."""
    deformed = dict(deform_blocks=(0, -1, -1, -1), output_stride=16)
    return faster_rcnn(
        detector.num_classes,
        backbone=detector.backbone | deformed,
        **detector.stages,
        dtype=dtype,
        rngs=nnx.Rngs(0),
    )


def start(detector: Detector, dtype: Any) -> tuple[Any, Any]:
    """Graph and state of the module, drawn by NumPy: the same on every platform."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(detector, dtype)))
    rng = np.random.default_rng(0)
    leaves = []
    for path, variable in nnx.to_flat_state(state):
        shape, name = variable.shape, path[-1]
        value = np.zeros(shape, np.float32)
        if name in ("scale", "var"):
            value += 1
        elif name == "kernel":
            # Offsets of half a pixel; elsewhere values keep their size.
            moves = {"offset_conv", "offset_fc"} & set(path)
            spread = (0.5 if moves else 1.0) / np.sqrt(np.prod(shape[:-1]))
            value = spread * rng.standard_normal(shape, np.float32)
        leaves.append((path, variable.replace(np.asarray(value, variable.dtype))))
    return graph, nnx.from_flat_state(leaves)


def random_batch(detector: Detector) -> Batch:
    """Smooth noise with five boxes in each image."""
    rng = np.random.default_rng(1)
    images, (height, width) = detector.images, detector.size
    coarse = rng.integers(0, 256, (images, height // 8, width // 8, 3), np.uint8)
    size = rng.uniform(0.1, 0.4, (images, 5, 2)) * [width, height]
    corner = rng.uniform(0, 1, (images, 5, 2)) * (np.array([width, height]) - size)
    classes = detector.num_classes
    return Batch(
        images=jnp.asarray(coarse.repeat(8, axis=1).repeat(8, axis=2)),
        sizes=jnp.asarray([[height, width]] * images, jnp.int32),
        boxes=jnp.asarray(np.concatenate([corner, corner + size], -1), jnp.float32),
        labels=jnp.asarray(rng.integers(1, classes + 1, (images, 5)), jnp.int32),
        valid=jnp.ones((images, 5), bool),
    )


def make_step(graph: Any, optimizer: optax.GradientTransformation):
    """(parameters, rest, optimiser's state, batch, key) -> the same, and the losses."""

    def step(parameters, rest, memory, batch, key):
        def loss(parameters):
            losses = nnx.merge(graph, parameters, rest).losses(batch, key)
            return sum(losses.values()), losses

        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, memory = optimizer.update(gradients, memory, parameters)
        parameters = optax.apply_updates(parameters, updates)
        return parameters, rest, memory, losses, optax.tree.norm(gradients)

    return jax.jit(step, donate_argnums=(0, 1, 2))


class Run:
    """A detector in training."""

    def __init__(self, detector: Detector, dtype: Any):
        graph, state = start(detector, dtype)
        parameters, rest = state.split(nnx.Param, ...)
        optimizer = optax.sgd(1e-3, momentum=0.9)
        # On the device, where each step leaves the next one's.
        self.state = (
            *jax.tree.map(jnp.asarray, (parameters, rest)),
            jax.jit(optimizer.init)(parameters),
        )
        self.batch = random_batch(detector)
        begin = time.perf_counter()
        self.step = (
            make_step(graph, optimizer)
            .lower(*self.state, self.batch, jax.random.key(0))
            .compile()
        )
        self.compile_seconds = time.perf_counter() - begin

    def __call__(self, number: int) -> tuple[dict[str, float], float]:
        """Takes a step; returns its losses and the norm of its gradient."""
        key = jax.random.key(number)
        *state, losses, norm = self.step(*self.state, self.batch, key)
        self.state = tuple(state)
        return {name: float(loss) for name, loss in losses.items()}, float(norm)


def one_step(detector: Detector) -> dict[str, Any]:
    """Losses, norm of the gradient and how far parameters moved, in float32."""
    with jax.default_matmul_precision("highest"):
        run = Run(detector, jnp.float32)
        before = jax.tree.map(np.array, run.state[0])
        losses, norm = run(0)
        moved = jax.tree.map(lambda a, b: np.asarray(a) - b, run.state[0], before)
    moved = [np.asarray(leaf) for leaf in jax.tree.leaves(moved)]
    return {"losses": losses, "norm": norm, "moved": moved}


def check_against_cpu(detector: Detector) -> bool:
    """Prints both losses; returns whether all is well."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        environment.pop("XLA_OPS_EMULATE_CUDA", None)
        size = "tiny" if detector is TINY else "small"
        other = subprocess.Popen(
            [sys.executable, "-m", "scripts.gpu_check.step", _ON_CPU, size, str(path)],
            env=environment,
        )
        try:
            here = one_step(detector)
            losses = (f"{name} {value:.6f}" for name, value in here["losses"].items())
            print(f"Losses here: {', '.join(losses)}.\n", flush=True)
        except BaseException:
            other.kill()
            raise
        finally:
            status = other.wait()
        if status:
            print(f"The step by the CPU's kernels failed with exit status {status}.")
            return False
        there = pickle.loads(path.read_bytes())
    print(
        "One step of a small detector in float32, products at the highest precision:\n"
    )
    print("| | here | CPU's kernels | relative difference |")
    print("| --- | --- | --- | --- |")
    rows = {f"loss: {name}": value for name, value in here["losses"].items()}
    other_rows = {f"loss: {name}": value for name, value in there["losses"].items()}
    rows["norm of the gradient"] = here["norm"]
    other_rows["norm of the gradient"] = there["norm"]
    good = True
    for name, value in rows.items():
        expected = other_rows[name]
        difference = abs(value - expected) / max(abs(expected), 1e-6)
        tolerance = _TOLERANCES["rpn" if "rpn" in name else "other"]
        good &= bool(np.isfinite(value)) and difference <= tolerance
        print(f"| {name} | {value:.6f} | {expected:.6f} | {difference:.1e} |")
    count = len(here["moved"])
    moved = sum(bool(leaf.any()) for leaf in here["moved"])
    spread = max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))
        for a, b in zip(here["moved"], there["moved"], strict=True)
        if b.any()
    )
    finite = all(np.isfinite(leaf).all() for leaf in here["moved"])
    good &= finite and moved > 0.9 * count
    print(
        f"\n{moved} of {count} parameters moved. "
        f"Updates differ from the CPU's by {spread:.1e} of the largest of each at "
        f"most. Allowed: {_TOLERANCES['rpn']:.0e} for the losses of the RPN, "
        f"{_TOLERANCES['other']:.0e} for the others.\n\n"
        f"**{'Agrees' if good else 'Does not agree'}.**"
    )
    return good


def measure(detector: Detector, dtype: Any, steps: int) -> bool:
    """Prints time and memory of a step; returns whether its losses are finite."""
    run = Run(detector, dtype)
    times = []
    for number in range(steps + 1):
        begin = time.perf_counter()
        losses, _ = run(number)
        times.append(time.perf_counter() - begin)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    memory = "unknown" if peak is None else f"{peak / 2**30:.2f}"
    program = run.step.memory_analysis()
    assert program is not None
    wanted = program.argument_size_in_bytes + program.temp_size_in_bytes
    step = statistics.median(times[1:]) * 1e3
    total = sum(losses.values())
    cells = [
        jnp.dtype(dtype).name,
        f"{step:.1f}",
        f"{detector.images / step * 1e3:.1f}",
        f"{wanted / 2**30:.2f}",
        memory,
        f"{run.compile_seconds:.0f}",
        f"{total:.3f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return bool(np.isfinite(total))


def main() -> int:
    """Returns the exit status."""
    begin = time.monotonic()
    if _ON_CPU in sys.argv:
        size, path = sys.argv[-2:]
        result = one_step({"tiny": TINY, "small": SMALL}[size])
        Path(path).write_bytes(pickle.dumps(result))
        return 0
    emulated = "--emulated" in sys.argv
    if "check" in sys.argv:
        return 0 if check_against_cpu(TINY if emulated else SMALL) else 1
    detector = TINY if emulated else PAPER
    print(
        f"Steps of {'a tiny detector' if emulated else 'ResNet-50'} at "
        f"{detector.size[0]}x{detector.size[1]}, {detector.images} images, float32 "
        "products at XLA's default precision. The step's memory is that of its "
        "arguments and what XLA plans beside them; the peak is the process's so far, "
        "and may have what XLA tried out while it compiled. "
        f"`XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}`.\n\n"
        "| compute | ms a step | images/s | GiB of the step | peak GiB | compiled in s "
        "| loss |\n| --- | --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    good, last = True, 0.0
    for dtype in (jnp.bfloat16, jnp.float32):
        if seconds_left(begin) < 1.3 * last:
            print(f"\nSkipped: {jnp.dtype(dtype).name}, for want of time.")
            break
        first = time.monotonic()
        good &= measure(detector, dtype, steps=1 if emulated else 10)
        last = time.monotonic() - first
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
