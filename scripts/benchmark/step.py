"""Times one train step of the paper's ResNet-50 DCNv2 Faster R-CNN at 800x1216.

    python -m scripts.benchmark.step [--row=dcnv2_mimic] [--batch=1] [--steps=2]

Runs the step of `train.main` on random images with random boxes and prints seconds a
step, the time of compiling and XLA's count of temporary memory.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from dcn_jax.detection.records import Batch
from scripts.benchmark.layers import CANVAS
from scripts.benchmark.train_step import make_step
from train import sharding
from train.configs import coco_faster_rcnn

_CLASSES = 80
_BOXES = 20


def random_batch(batch: int) -> Batch:
    """Images of noise with boxes of 20 to 400 pixels."""
    rng = np.random.default_rng(0)
    size = rng.uniform(20, 400, (batch, _BOXES, 2))
    corner = rng.uniform(0, 1, (batch, _BOXES, 2)) * (np.array(CANVAS[::-1]) - size)
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (batch, *CANVAS, 3)), jnp.uint8),
        sizes=jnp.tile(jnp.array([CANVAS], jnp.int32), (batch, 1)),
        boxes=jnp.asarray(np.concatenate([corner, corner + size], -1), jnp.float32),
        labels=jnp.asarray(rng.integers(1, _CLASSES + 1, (batch, _BOXES)), jnp.int32),
        valid=jnp.ones((batch, _BOXES), bool),
    )


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", default="dcnv2_mimic")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    config = coco_faster_rcnn.get_config(f"{arguments.row},800")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    train = make_step(config, _CLASSES, mesh)
    state = train.start()
    batch = random_batch(arguments.batch)
    begin = time.perf_counter()
    compiled = train.step.lower(state, batch).compile()
    print(f"compiled in {time.perf_counter() - begin:.1f} s")
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
    print(f"temporary memory {memory:.2f} GiB")
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begin
        print(f"step {seconds:.2f} s  loss {float(metrics['loss']):.3f}")


if __name__ == "__main__":
    main()
