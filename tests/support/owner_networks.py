"""Names and shapes of other people's detectors, written out from their constructors."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

Shapes = dict[str, tuple[int, ...]]


class Body(NamedTuple):
    """A ResNet or ResNeXt."""

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    groups: int = 1
    width_per_group: int = 64
    # Of the offset branches of the last three stages; 0 has none.
    branch: int = 0
    # Channels of conv1; everything is in proportion.
    stem: int = 64


R50 = Body()
R101 = Body((3, 4, 23, 3))
X101_32X4D = Body((3, 4, 23, 3), groups=32, width_per_group=4)
X101_32X8D = Body((3, 4, 23, 3), groups=32, width_per_group=8)


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors of these shapes, which take no memory before they are written to."""
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


def random(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors of these shapes, all different; counters are integers."""
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(7)
        if name.endswith("num_batches_tracked")
        else rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


def num_parameters(shapes: Mapping[str, tuple[int, ...]], *, frozen: bool) -> int:
    """As the owner counts: without statistics, and affine maps if norms are frozen."""
    norms = {name.rpartition(".")[0] for name in shapes if name.endswith("_mean")}
    return sum(
        int(np.prod(shape))
        for name, shape in shapes.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        and not (frozen and name.rpartition(".")[0] in norms)
    )


def torchvision(
    body: Body = R50,
    *,
    classes: int = 91,
    masks: bool = False,
    old: bool = False,
    counted: bool = True,
    width: int = 256,
    hidden: int = 1024,
) -> Shapes:
    """Faster or Mask R-CNN.

    Args:
      body: Its backbone.
      classes: With the background.
      masks: Whether it has a mask head.
      old: Whether it has the names of torchvision before 0.13.
      counted: Whether its batch norms count batches, as those that are trained do.
      width: Channels of the pyramid.
      hidden: Of the box head.
    """
    dot = "" if old else ".0"
    shapes = resnet(body, "backbone.body.", counted=counted)
    for i, channels in enumerate(_channels(body)):
        _layer(shapes, f"backbone.fpn.inner_blocks.{i}{dot}", width, channels, 1, 1)
        _layer(shapes, f"backbone.fpn.layer_blocks.{i}{dot}", width, width, 3, 3)
    _layer(shapes, "rpn.head.conv" + 2 * dot, width, width, 3, 3)
    _layer(shapes, "rpn.head.cls_logits", 3, width, 1, 1)
    _layer(shapes, "rpn.head.bbox_pred", 12, width, 1, 1)
    _layer(shapes, "roi_heads.box_head.fc6", hidden, 49 * width)
    _layer(shapes, "roi_heads.box_head.fc7", hidden, hidden)
    _layer(shapes, "roi_heads.box_predictor.cls_score", classes, hidden)
    _layer(shapes, "roi_heads.box_predictor.bbox_pred", 4 * classes, hidden)
    if masks:
        for i in range(4):
            name = f"mask_fcn{i + 1}" if old else f"{i}.0"
            _layer(shapes, f"roi_heads.mask_head.{name}", width, width, 3, 3)
        predictor = "roi_heads.mask_predictor."
        _layer(shapes, f"{predictor}conv5_mask", width, width, 2, 2)
        _layer(shapes, f"{predictor}mask_fcn_logits", classes, width, 1, 1)
    return shapes


def mmdetection(
    body: Body = R50,
    *,
    classes: int = 80,
    masks: bool = False,
    pool: str = "",
    width: int = 256,
    hidden: int = 1024,
) -> Shapes:
    """Faster or Mask R-CNN.

    Args:
      body: Its backbone.
      classes: Without the background.
      masks: Whether it has a mask head.
      pool: "dpool" or "mdpool".
      width: Channels of the pyramid.
      hidden: Of the box head and the branches of the pooling.
    """
    shapes = resnet(body, "backbone.")
    for i, channels in enumerate(_channels(body)):
        _layer(shapes, f"neck.lateral_convs.{i}.conv", width, channels, 1, 1)
        _layer(shapes, f"neck.fpn_convs.{i}.conv", width, width, 3, 3)
    _layer(shapes, "rpn_head.rpn_conv", width, width, 3, 3)
    _layer(shapes, "rpn_head.rpn_cls", 3, width, 1, 1)
    _layer(shapes, "rpn_head.rpn_reg", 12, width, 1, 1)
    for i in range(4 if pool else 0):
        layer = f"roi_head.bbox_roi_extractor.roi_layers.{i}."
        _layer(shapes, f"{layer}offset_fc.0", hidden, 49 * width)
        _layer(shapes, f"{layer}offset_fc.2", hidden, hidden)
        _layer(shapes, f"{layer}offset_fc.4", 98, hidden)
        if pool == "mdpool":
            _layer(shapes, f"{layer}mask_fc.0", hidden, 49 * width)
            _layer(shapes, f"{layer}mask_fc.2", 49, hidden)
    head = "roi_head.bbox_head."
    _layer(shapes, f"{head}fc_cls", classes + 1, hidden)
    _layer(shapes, f"{head}fc_reg", 4 * classes, hidden)
    _layer(shapes, f"{head}shared_fcs.0", hidden, 49 * width)
    _layer(shapes, f"{head}shared_fcs.1", hidden, hidden)
    if masks:
        for i in range(4):
            _layer(shapes, f"roi_head.mask_head.convs.{i}.conv", width, width, 3, 3)
        _layer(shapes, "roi_head.mask_head.upsample", width, width, 2, 2)
        _layer(shapes, "roi_head.mask_head.conv_logits", classes, width, 1, 1)
    return shapes


def detectron2(
    body: Body = R50,
    *,
    classes: int = 80,
    masks: bool = False,
    width: int = 256,
    hidden: int = 1024,
) -> Shapes:
    """Faster or Mask R-CNN; the arguments are `mmdetection`'s."""
    shapes: Shapes = {}
    for i, channels in enumerate(_channels(body)):
        _layer(shapes, f"backbone.fpn_lateral{i + 2}", width, channels, 1, 1)
        _layer(shapes, f"backbone.fpn_output{i + 2}", width, width, 3, 3)
    for conv, _, branch, shape in _convolutions(body, "backbone.bottom_up."):
        name = _detectron2_name(conv)
        shapes[f"{name}.weight"] = shape
        if branch:
            _layer(shapes, f"{name}_offset", branch, shape[0], 3, 3)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{leaf}"] = shape[:1]
    _layer(shapes, "proposal_generator.rpn_head.conv", width, width, 3, 3)
    _layer(shapes, "proposal_generator.rpn_head.objectness_logits", 3, width, 1, 1)
    _layer(shapes, "proposal_generator.rpn_head.anchor_deltas", 12, width, 1, 1)
    _layer(shapes, "roi_heads.box_head.fc1", hidden, 49 * width)
    _layer(shapes, "roi_heads.box_head.fc2", hidden, hidden)
    _layer(shapes, "roi_heads.box_predictor.cls_score", classes + 1, hidden)
    _layer(shapes, "roi_heads.box_predictor.bbox_pred", 4 * classes, hidden)
    if masks:
        for i in range(4):
            _layer(shapes, f"roi_heads.mask_head.mask_fcn{i + 1}", width, width, 3, 3)
        _layer(shapes, "roi_heads.mask_head.deconv", width, width, 2, 2)
        _layer(shapes, "roi_heads.mask_head.predictor", classes, width, 1, 1)
    return shapes


def resnet(body: Body, prefix: str = "", *, counted: bool = True) -> Shapes:
    """A ResNet under torchvision's names, deformable under mmdetection's."""
    shapes: Shapes = {}
    for conv, norm, branch, shape in _convolutions(body, prefix):
        shapes[f"{conv}.weight"] = shape
        if branch:
            _layer(shapes, f"{conv}.conv_offset", branch, shape[0], 3, 3)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{leaf}"] = shape[:1]
        if counted:
            shapes[f"{norm}.num_batches_tracked"] = ()
    return shapes


def _convolutions(
    body: Body, prefix: str
) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """Name, norm's name, outputs of the branch and shape of each convolution."""
    yield f"{prefix}conv1", f"{prefix}bn1", 0, (body.stem, 3, 7, 7)
    channels = body.stem
    for stage, depth in enumerate(body.depths):
        planes = body.stem << stage
        width = planes * body.width_per_group // 64 * body.groups
        for i in range(depth):
            at = f"{prefix}layer{stage + 1}.{i}"
            branch = body.branch if stage > 0 else 0
            for k, shape in enumerate(
                (
                    (width, channels, 1, 1),
                    (width, width // body.groups, 3, 3),
                    (4 * planes, width, 1, 1),
                ),
                start=1,
            ):
                yield f"{at}.conv{k}", f"{at}.bn{k}", branch if k == 2 else 0, shape
            if i == 0:
                down = f"{at}.downsample"
                yield f"{down}.0", f"{down}.1", 0, (4 * planes, channels, 1, 1)
            channels = 4 * planes


def _detectron2_name(name: str) -> str:
    prefix, _, rest = name.rpartition("bottom_up.")
    if rest == "conv1":
        return f"{prefix}bottom_up.stem.conv1"
    stage, block, *layer = rest.split(".")
    layer = "shortcut" if layer == ["downsample", "0"] else layer[0]
    return f"{prefix}bottom_up.res{int(stage[-1]) + 1}.{block}.{layer}"


def _channels(body: Body) -> tuple[int, ...]:
    return tuple(4 * body.stem << stage for stage in range(4))


def _layer(shapes: Shapes, name: str, *shape: int) -> None:
    shapes[f"{name}.weight"] = shape
    shapes[f"{name}.bias"] = shape[:1]
