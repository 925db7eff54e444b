"""A task whose ground truth is a class for each pixel, and a network for it."""

from typing import Any, NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from train.config_dict import ConfigDict
from train.configs import _base
from train.data import transforms
from train.rules import COUNT, check_config
from train.sections import arguments_of, construct
from train.task import Start

# In the padding of a canvas.
_NOTHING = -1


class Batch(NamedTuple):
    """Images with a class for each pixel."""

    images: Any  # [N, H, W, 3] uint8
    sizes: Any  # [N, 2] int32
    classes: Any  # [N, H, W] int32, 0 is the ground


class LabelMaps(NamedTuple):
    """What the network says of each pixel."""

    classes: Any  # [N, H, W] int32


class DenseClassifier(nnx.Module):
    """Two convolutions.

    Args:
      num_classes: Beside the ground.
      width: Channels between them.
      rngs: Initialisation.
    """

    frozen_paths = ()

    def __init__(self, num_classes, *, width=8, rngs):
        self.stem = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.head = nnx.Conv(width, num_classes + 1, (1, 1), rngs=rngs)

    def features(self, images, sizes):
        return nnx.relu(self.stem(images.astype(jnp.float32) / 255))

    def losses(self, batch, key):
        logits = self.head(self.features(batch.images, batch.sizes))
        seen = batch.classes != _NOTHING
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(batch.classes, 0)
        )
        return {"pixel": losses.mean(where=seen)}

    def predict(self, images, sizes):
        logits = self.head(self.features(images, sizes))
        return LabelMaps(logits.argmax(-1).astype(jnp.int32))


class PixelAccuracy:
    """Share of the pixels of the original images that have the right class."""

    def __init__(self, source):
        examples = [source[i] for i in range(len(source))]
        self._truth = {e.image_id: painted(e) for e in examples}
        self._counts = [0, 0]

    def update(self, prediction, image_id, geometry):
        truth = self._truth[image_id]
        right = int((original(prediction, geometry) == truth).sum())
        self._counts = [self._counts[0] + right, self._counts[1] + truth.size]

    def state(self):
        return self._counts

    def merge(self, states):
        self._counts = [sum(counts) for counts in zip(*states, strict=True)]

    def compute(self):
        right, pixels = self._counts
        return {"pixels/accuracy": right / pixels if pixels else None}

    def files(self):
        return {}

    def figures(self):
        return {}


def painted(example):
    """A class for each pixel of an image: that of the last box it lies in."""
    classes = np.zeros(example.image.shape[:2], np.uint8)
    for (x1, y1, x2, y2), label in zip(
        example.boxes.astype(int), example.labels, strict=True
    ):
        classes[y1:y2, x1:x2] = label
    return classes


def resized(classes, size):
    height, width = size
    return cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST)


def original(prediction, geometry):
    """The classes predicted for the pixels of the original image."""
    height, width = geometry.size
    classes = np.asarray(prediction.classes)[:height, :width].astype(np.uint8)
    return resized(classes, geometry.original)


class DenseClassification:
    """The task."""

    Batch = Batch
    kept_fields: tuple[str, ...] = ()
    network_file = "classifier"

    def check(self, config):
        check_config(config, get_config(), {**_base.RULES, "network.width": COUNT})

    def architecture(self, config):
        return {"network.width": config.network.width}

    def build(self, config, num_classes, rngs):
        return construct(
            DenseClassifier, config.network, num_classes=num_classes, rngs=rngs
        )

    def conventions(self, config):
        return {}

    def weights(self, config, network):
        return Start({}, ())

    def write_network(self, folder, config, categories, variables):
        (folder / self.network_file).write_text(" ".join(sorted(variables)))

    def usable(self, source):
        return np.ones(len(source), bool)

    def summary(self, source, split, data):
        return f"{split}: {len(source)} images"

    def targets(self, example, geometry, data):
        classes = resized(painted(example), geometry.size)
        if geometry.flip:
            classes = transforms.flip_image(classes)
        rows = np.full(geometry.canvas, _NOTHING, np.int32)
        rows[: classes.shape[0], : classes.shape[1]] = classes
        return {"classes": rows}

    def metric(self, source):
        return PixelAccuracy(source)

    def draw(self, image, prediction, geometry, categories, score):
        shown = original(prediction, geometry) > 0
        return np.where(shown[..., None], image, image // 2)

    def draw_truth(self, image, example, geometry, categories, data):
        shown = resized(painted(example), geometry.size) > 0
        return np.where(shown[..., None], image, image // 2)

    def records(self, prediction, geometry, categories, score):
        classes, counts = np.unique(original(prediction, geometry), return_counts=True)
        return [
            {"label": categories[k - 1]["name"], "pixels": int(count)}
            for k, count in zip(classes, counts, strict=True)
            if k > 0
        ]


def get_config() -> ConfigDict:
    """Ten steps on digits."""
    config = _base.get_config()
    config.task = config.name = "label_maps"
    config.network = arguments_of(DenseClassifier)
    config.steps = 10
    config.batch_size = config.eval.batch_size = 8
    config.eval.every = 0
    config.log.every = 1
    config.log.offset_health_every = 5
    data = config.data
    data.name = "deformed_digits"
    data.options.update({"train_images": 16, "test_images": 8, "seed": 0})
    data.eval_split = "test"
    data.canvases, data.max_side = ((72, 80), (80, 72)), 64
    data.short_sides, data.eval_short_side = (48, 64), 64
    config.optim.update({"lr": 0.1, "warmup_steps": 0})
    return config
