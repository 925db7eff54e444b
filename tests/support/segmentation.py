"""Semantic segmentation with a network that compiles in a second."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dcn_jax.segmentation.records import LabelMaps
from train.config_dict import ConfigDict
from train.configs import _base
from train.data.label_maps import IGNORE
from train.rules import COUNT, check_config
from train.sections import arguments_of, construct
from train.task import Start
from train.tasks.segmentation import Segmentation


class TwoConvolutions(nnx.Module):
    """Tells classes by their colours.

    Args:
      num_classes: The background among them.
      width: Channels between the convolutions.
      rngs: Initialisation.
    """

    frozen_paths = ()

    def __init__(self, num_classes, *, width=16, rngs):
        self.stem = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.head = nnx.Conv(width, num_classes, (1, 1), rngs=rngs)

    def features(self, images, sizes):
        return nnx.relu(self.stem(images.astype(jnp.float32) / 128 - 1))

    def losses(self, batch, key):
        logits = self.head(self.features(batch.images, batch.sizes))
        labels = batch.labels.astype(jnp.int32)
        known = labels != IGNORE
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.where(known, labels, 0)
        )
        return {"pixel": losses.mean(where=known)}

    def predict(self, images, sizes):
        logits = self.head(self.features(images, sizes))
        return LabelMaps(logits.argmax(-1).astype(jnp.uint8))


class SegmentationDouble(Segmentation):
    """Segmentation by `TwoConvolutions`."""

    kept_fields: tuple[str, ...] = ()

    def check(self, config):
        check_config(config, get_config(), {**_base.RULES, "network.width": COUNT})

    def architecture(self, config):
        return {"network.width": config.network.width}

    def build(self, config, num_classes, rngs):
        return construct(
            TwoConvolutions, config.network, num_classes=num_classes, rngs=rngs
        )

    def conventions(self, config):
        return {}

    def weights(self, config, network):
        return Start({}, ())


class Oracle(nnx.Module):
    """Says of every pixel which of some colours it is nearest to.

    Args:
      colours: [C, 3] RGB, by label.
    """

    frozen_paths = ()

    def __init__(self, colours):
        # No array, which would be a variable of the module.
        self._colours = tuple(map(tuple, np.asarray(colours).tolist()))

    def features(self, images, sizes):
        return images

    def predict(self, images, sizes):
        colours = jnp.array(self._colours, jnp.float32)[None, None, None]
        away = images.astype(jnp.float32)[..., None, :] - colours
        return LabelMaps(jnp.square(away).sum(-1).argmin(-1).astype(jnp.uint8))


def get_config() -> ConfigDict:
    """Six steps; a data set is still to be named."""
    config = _base.get_config()
    config.task = config.name = "segmentation"
    config.network = arguments_of(TwoConvolutions)
    config.steps = 6
    config.batch_size = config.eval.batch_size = 8
    config.log.update({"every": 1, "offset_health_every": 0})
    config.data.canvases = ((64, 96), (96, 64))
    config.data.max_side = 96
    config.data.short_sides, config.data.eval_short_side = (40, 48), 48
    config.optim.update({"lr": 0.2, "warmup_steps": 0, "lr_multipliers": ()})
    config.eval.update({"every": 0, "pictures": 2})
    return config
