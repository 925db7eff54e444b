"""A detector and a batch so small that a test can afford to compile them."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.detection.box_head import DetectionSelection, RoISampling
from dcn_jax.detection.records import Batch
from dcn_jax.detection.rpn import AnchorSampling, Selection
from dcn_jax.modules import DeformRoIPool
from dcn_jax.networks import class_aware_rpn, deeplab, faster_rcnn, mask_rcnn_fpn, r_fcn
from dcn_jax.segmentation import records

_BACKBONE = dict(
    depths=(1, 1, 1, 1), stem_features=8, output_stride=16, norm="group_norm"
)


def make_backbone(**kwargs):
    """A ResNet of one block a stage whose widths are an eighth of the usual ones."""
    return ResNet(**(_BACKBONE | kwargs), rngs=nnx.Rngs(0))


def make_detector(
    backbone=None, *, pool=None, box=None, mimic=None, pool_layer=DeformRoIPool, **rest
):
    """Faster R-CNN with a handful of everything.

    Mappings change the settings of a stage; without `mimic` it does not mimic.
    """
    few = dict(output_size=3)
    if pool_layer is DeformRoIPool:
        few["hidden_features"] = 8
    return faster_rcnn(
        3,
        backbone=_BACKBONE | (backbone or {}),
        neck=dict(features=8),
        rpn=dict(
            features=8,
            anchor_sizes=(16, 32),
            sampling=AnchorSampling(samples=16),
            train=Selection(60, 20),
            test=Selection(60, 20),
        ),
        pool_layer=pool_layer,
        pool=few | (pool or {}),
        box=dict(features=16) | (box or {}),
        mimic=None if mimic is None else dict(count=3, crop_size=32) | mimic,
        sampling=RoISampling(samples=12),
        selection=DetectionSelection(max_detections=10),
        rngs=nnx.Rngs(1),
        **rest,
    )


def make_mask_rcnn(
    backbone=None, *, neck=None, mimic=None, pool_layer=DeformRoIPool, **rest
):
    """Mask R-CNN on a pyramid, likewise."""
    hidden = dict(hidden_features=8) if pool_layer is DeformRoIPool else {}
    return mask_rcnn_fpn(
        3,
        backbone=_BACKBONE | dict(output_stride=32) | (backbone or {}),
        neck=dict(features=8) | (neck or {}),
        rpn=dict(
            features=8,
            anchor_sizes=(8,),
            sampling=AnchorSampling(samples=16),
            train=Selection(20, 20),
            test=Selection(20, 20),
        ),
        pool_layer=pool_layer,
        pool=dict(output_size=3, **hidden),
        box=dict(features=16, canonical_size=40.0),
        mask_pool=dict(output_size=4, **hidden),
        mask=dict(features=8, num_convs=2, canonical_size=40.0),
        mimic=None if mimic is None else dict(count=3, crop_size=32) | mimic,
        sampling=RoISampling(samples=12, positive_fraction=0.5),
        selection=DetectionSelection(max_detections=10),
        rngs=nnx.Rngs(1),
        **rest,
    )


def make_r_fcn(backbone=None, *, psroi=None, **rest):
    """R-FCN, which learns from its hardest RoIs, likewise."""
    return r_fcn(
        3,
        backbone=_BACKBONE | dict(modulated=False) | (backbone or {}),
        neck=dict(features=8),
        rpn=dict(
            features=8,
            anchor_sizes=(16, 32),
            sampling=AnchorSampling(samples=16),
            train=Selection(60, 20),
            test=Selection(60, 20),
        ),
        psroi=dict(bins=3, samples_per_part=2) | (psroi or {}),
        sampling=RoISampling(samples=24, positive_fraction=1.0, hardest=12),
        selection=DetectionSelection(max_detections=10),
        rngs=nnx.Rngs(1),
        **rest,
    )


def make_class_aware_rpn(backbone=None, *, num_classes=3, **rest):
    """A class-aware RPN, likewise."""
    return class_aware_rpn(
        num_classes,
        backbone=_BACKBONE | dict(modulated=False) | (backbone or {}),
        neck=dict(features=8, rpn_on_conv5=True),
        rpn=dict(
            features=8, anchor_sizes=(16, 32), sampling=AnchorSampling(samples=16)
        ),
        selection=DetectionSelection(max_detections=10),
        rngs=nnx.Rngs(1),
        **rest,
    )


def make_deeplab(backbone=None, *, num_classes=4, **rest):
    """DeepLab, likewise."""
    return deeplab(
        num_classes,
        backbone=_BACKBONE | dict(modulated=False) | (backbone or {}),
        neck=dict(features=8),
        rngs=nnx.Rngs(1),
        **rest,
    )


def tiny_mask_rcnn(backbone=None, **kwargs):
    """`make_mask_rcnn` with values."""
    return filled(lambda: make_mask_rcnn(backbone, **kwargs))


def tiny_r_fcn(backbone=None, **kwargs):
    """`make_r_fcn` with values."""
    return filled(lambda: make_r_fcn(backbone, **kwargs))


def tiny_class_aware_rpn(backbone=None, **kwargs):
    """`make_class_aware_rpn` with values."""
    return filled(lambda: make_class_aware_rpn(backbone, **kwargs))


def tiny_deeplab(backbone=None, **kwargs):
    """`make_deeplab` with values."""
    return filled(lambda: make_deeplab(backbone, **kwargs))


def with_masks(batch, side=15):
    """A batch whose objects are discs that touch their boxes.

    An odd side, so that no cell of a target is covered by exactly one half.
    """
    centre = (np.arange(side) + 0.5) / side * 2 - 1
    disc = (centre[:, None] ** 2 + centre**2 < 1).astype(np.uint8)
    masks = np.broadcast_to(disc, (*batch.labels.shape, side, side))
    windows = np.where(batch.valid[..., None], batch.boxes, 0)
    return batch._replace(masks=jnp.asarray(masks), mask_windows=jnp.asarray(windows))


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


def tiny_label_batch(images=2, height=40, width=56, seed=0):
    """Noise with labels of blocks, of which some are not judged."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 1, 2, 3, 255], (images, 5, 7))
    labels = blocks.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    return records.Batch(
        images=jnp.asarray(rng.integers(0, 255, (images, height, width, 3), np.uint8)),
        sizes=jnp.asarray(np.tile(np.int32([height, width]), (images, 1))),
        labels=jnp.asarray(labels, jnp.uint8),
    )
