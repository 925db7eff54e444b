"""Detection with a network that compiles in a second.

As a program, `python -m tests.support.double --config=...`, it is train.main with this
task in the place of the real one; `python -m tests.support.double train.predict ...` is
another program.
"""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.detection.records import Detections
from dcn_jax.modules.deform_conv import Samples
from train.task import Passes
from train.tasks.detection import Detection


class _Backbone(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 4, (3, 3), strides=4, rngs=rngs)
        self.offset_conv = nnx.Conv(4, 4, (1, 1), rngs=rngs)


class TinyDetector(nnx.Module):
    """Says which of the classes are in an image, at the place of the whole image."""

    frozen_paths = ("backbone.conv1.",)

    def __init__(self, num_classes, rngs):
        self.backbone = _Backbone(rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, num_classes, rngs=rngs)

    def _logits(self, images):
        x = self.backbone.conv1(images.astype(jnp.float32) / 255)
        x = self.norm(jnp.tanh(self.backbone.offset_conv(x)))
        return self.head(x.mean((1, 2)))

    def losses(self, batch, key):
        # Dropout of whole images makes the loss depend on the key.
        kept = jax.random.bernoulli(key, 0.8, batch.labels.shape[:1])
        classes = jnp.arange(1, self.head.out_features + 1)[None, None]
        present = (batch.labels[..., None] == classes).any(1).astype(jnp.float32)
        log_p = jax.nn.log_softmax(self._logits(batch.images))
        class_loss = -(log_p * present).sum(1)
        return {
            "class": jnp.where(kept, class_loss, 0.0).mean(),
            "box": 0.1 * jnp.square(self.head.kernel[...]).mean(),
        }

    def predict(self, images, sizes):
        scores, labels = jax.lax.top_k(jax.nn.softmax(self._logits(images)), 2)
        height, width = sizes[:, 0], sizes[:, 1]
        box = jnp.stack([0 * width, 0 * width, width, height], -1).astype(jnp.float32)
        boxes = jnp.broadcast_to(box[:, None], (len(box), 2, 4))
        return Detections(boxes, scores, labels + 1, scores > 0)

    def features(self, images, sizes):
        offset = self.backbone.offset_conv.bias[...].reshape(1, 1, 1, 1, 2, 2)
        samples = dict(offset=offset, mask=None, position=offset)
        samples |= {
            "undeformed": offset[0, :, :, 0],
            "map_size": jnp.ones(2, jnp.int32),
        }
        self.sow(Samples, "samples", samples)
        return self.backbone.conv1(images.astype(jnp.float32) / 255)


class DetectionDouble(Detection):
    """Detection whose network is another, a `TinyDetector` unless it is told."""

    def __init__(self, network=TinyDetector):
        self._network = network

    def build(self, config, num_classes, rngs):
        return self._network(num_classes, rngs)

    def passes(self, network):
        if hasattr(network, "trunk"):
            return super().passes(network)
        return Passes(type(network).features, None, (0.0, 0.0, 0.0))


def batch(n=8, side=32, seed=0):
    """A random training batch, as the loader yields it."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((n, 3, 4), np.float32)
    boxes[:, 0] = [4, 4, 20, 24]
    boxes[:, 1] = [10, 2, 30, 12]
    labels = rng.integers(1, 4, (n, 3)).astype(np.int32)
    labels[:, 2] = 0
    return {
        "images": rng.integers(0, 256, (n, side, side, 3)).astype(np.uint8),
        "sizes": np.full((n, 2), side, np.int32),
        "boxes": boxes,
        "labels": labels,
        "valid": labels > 0,
    }


if __name__ == "__main__":
    from train import cli

    named = len(sys.argv) > 1 and not sys.argv[1].startswith("-")
    program = importlib.import_module(sys.argv.pop(1) if named else "train.main")
    if hasattr(program, "__path__"):
        program = importlib.import_module(f"{program.__name__}.__main__")
    cli.run(program.main, {"detection": DetectionDouble()})
