"""A detector and a batch so small that a test can afford to compile them."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.detection.two_stage import FasterRCNN
from dcn_jax.detection.records import Batch


def make_backbone(**kwargs):
    """A ResNet of one block a stage whose widths are an eighth of the usual ones."""
    defaults = dict(stem_features=8, dilate_conv5=True, norm="group_norm")
    return ResNet((1, 1, 1, 1), **(defaults | kwargs), rngs=nnx.Rngs(0))


def make_detector(backbone=None, **kwargs):
    """Faster R-CNN with a handful of everything; `backbone` has its arguments."""
    defaults = dict(
        rpn_features=8,
        anchor_sizes=(16, 32),
        rpn_pre_nms_top_n=(60, 60),
        rpn_post_nms_top_n=(20, 20),
        rpn_samples=16,
        reduction_features=8,
        roi_output_size=3,
        roi_branch_features=8,
        roi_samples=12,
        head_features=16,
        max_detections=10,
        mimic_count=3,
        mimic_crop_size=32,
    )
    backbone = make_backbone(**(backbone or {}))
    return FasterRCNN(backbone, 3, **(defaults | kwargs), rngs=nnx.Rngs(1))


def tiny_backbone(**kwargs):
    """`make_backbone` with values."""
    return filled(lambda: make_backbone(**kwargs))


def tiny_detector(backbone=None, **kwargs):
    """`make_detector` with values."""
    return filled(lambda: make_detector(backbone, **kwargs))


def filled(make):
    """The module with large random kernels; deforming branches are zero.

    Drawn by NumPy: JAX would compile a program for every shape.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    leaves = []
    for path, variable in nnx.to_flat_state(state):
        value = np.zeros(variable.shape)
        if path[-1] in ("scale", "var"):
            value += 1
        elif path[-1] == "kernel" and not {"offset_conv", "offset_fc"} & set(path):
            fan_in = np.prod(variable.shape[:-1])
            value = rng.normal(size=variable.shape) * np.sqrt(2 / fan_in)
        leaves.append((path, variable.replace(jnp.asarray(value, variable.dtype))))
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def tiny_batch(images=2, height=64, width=64, seed=0):
    """Noise with two boxes in each image, and two rows of padding."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((images, 4, 4), np.float32)
    boxes[:, 0] = [5, 5, 30, 34]
    boxes[:, 1] = [20, 31, 60, 60]
    boxes[:, :2] += rng.uniform(-3, 3, (images, 2, 4))
    labels = np.zeros((images, 4), np.int32)
    labels[:, :2] = [1, 3]
    return Batch(
        images=jnp.asarray(rng.integers(0, 255, (images, height, width, 3), np.uint8)),
        sizes=jnp.asarray(np.tile(np.int32([height, width]), (images, 1))),
        boxes=jnp.asarray(boxes),
        labels=jnp.asarray(labels),
        valid=jnp.asarray(labels > 0),
    )
