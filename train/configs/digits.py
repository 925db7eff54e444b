"""The demo: DCNv2 with feature mimicking on deformed digits, on two CPU cores.

The paper's DCNv2 row (modulated convolutions in conv3 to conv5, modulated RoI pooling,
foreground mimicking) with a thin ResNet trained from scratch.

    python -m train.main --config=train/configs/digits.py --workdir=runs/demo
    python -m train.main --config=train/configs/digits.py:regular

":regular" is the same recipe, mimicking included, with regular convolutions and aligned
RoI pooling; ":dcnv1" deforms as the first paper does, in the last three layers and in
RoI pooling, without modulation. ":fpn" and ":mask" are Faster R-CNN and Mask R-CNN on a
feature pyramid, deformable as the demo. ":rfcn", ":rpn" and ":deeplab" are R-FCN, the
class-aware RPN and DeepLab of the first paper, with deformable convolutions in conv5.
docs/demo.md has what they reach.
"""

from train.config_dict import ConfigDict
from train.configs import _detection, _segmentation

_DETECTORS = {
    "": "faster_rcnn",
    "regular": "faster_rcnn",
    "dcnv1": "faster_rcnn",
    "fpn": "faster_rcnn_fpn",
    "mask": "mask_rcnn_fpn",
    "rfcn": "r_fcn",
    "rpn": "class_aware_rpn",
}
_FIRST_PAPER = ("r_fcn", "class_aware_rpn", "deeplab")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the demo's configuration, or a counterpart."""
    known = (*_DETECTORS, "deeplab")
    if arg not in known:
        raise ValueError(
            f"digits.py:{arg}: expected no argument or one of {known[1:]}."
        )
    if arg == "deeplab":
        config = _segmentation.get_config("deeplab")
        config.data.options.label_maps = True
        config.model.neck.features = 256
    else:
        config = _detector(_DETECTORS[arg])
    config.name = f"digits_{arg}" if arg else "digits"
    config.steps = 2000
    config.batch_size = 8

    data = config.data
    data.name = "deformed_digits"
    data.options.update({"train_images": 2400, "test_images": 600, "seed": 0})
    data.eval_split = "test"
    set_side(config, 256)
    data.flip = False  # a mirrored digit is no digit

    backbone = config.model.backbone
    backbone.depths = (1, 1, 2, 1)
    backbone.stem_features = 16
    backbone.norm = "group_norm"
    if config.network in _FIRST_PAPER:
        backbone.deform_blocks, backbone.modulated = (0, 0, 0, -1), False
        config.batch_size, config.steps = 4, 3500
    if config.network == "deeplab":
        # The larger the images, the longer it takes until classes are told apart; on
        # small ones strokes are thin beside the 16 pixels of a cell.
        set_side(config, 192)
        data.canvases = ((128, 128), (192, 192))
        data.short_sides = (112, 128, 176, 192)
        config.steps = 8000
        backbone.depths = (1, 1, 2, 3)
    if config.network == "class_aware_rpn":
        # On images of half the side the medium digits are as small as the small ones,
        # of which an image has few positives, and steps are cheaper.
        data.canvases = ((128, 128), (256, 256))
        data.short_sides = (112, 128, 240, 256)
        config.steps = 6000

    optim = config.optim
    # In so few steps from random weights SGD with momentum hardly starts to learn.
    optim.name = "adamw"
    optim.lr = 0.001
    optim.weight_decay = 0.01
    optim.warmup_steps = 100
    optim.warmup_factor = 0.1
    optim.decay_at = (0.7, 0.9)
    if config.network == "class_aware_rpn":
        optim.decay_at = (0.8, 0.95)
    if config.network == "deeplab":
        optim.decay_at = (0.85,)
    optim.clip_norm = 5.0

    config.log.every = 50
    config.log.offset_health_every = 250
    config.checkpoint.every = 500
    # It has a quarter as many images as training.
    config.eval.every = 0.25
    config.eval.batch_size = 20
    config.eval.pictures = 9

    if arg == "regular":
        backbone.deform_blocks = (0, 0, 0, 0)
        _detection.set_pool_layer(config, "RoIAlign")
    if arg == "dcnv1":
        backbone.deform_blocks, backbone.modulated = (0, 0, -1, -1), False
        config.model.pool.modulated = False
    return config


def set_side(config: ConfigDict, side: int) -> None:
    """Fits the images into a square."""
    data = config.data
    data.canvases = ((side, side),)
    data.short_sides = (side * 14 // 16, side * 15 // 16, side)
    data.eval_short_side = data.max_side = side


def _detector(network: str) -> ConfigDict:
    """What only detectors have, in the size of the demo."""
    config = _detection.get_config(network)
    config.data.max_boxes = 6
    model = config.model
    model.neck.features = 64
    model.rpn.features = 128
    model.rpn.anchor_sizes = (24.0, 40.0, 72.0, 144.0)
    model.rpn.aspect_ratios = (1.0, 1.6)
    if network.endswith("_fpn"):
        model.neck.features = model.rpn.features = 48
        model.rpn.anchor_sizes = (16.0,)
    model.rpn.sampling.samples = 64
    model.selection.max_detections = 20
    if network == "class_aware_rpn":
        # What is a detector wants more positives, and boxes that are exact, than what
        # proposes; with a box head's weights of deltas, 10 and 5, classes lag behind.
        # Each anchor has a classifier of its own: of one shape each learns from more
        # digits than of two. Large digits match many anchors of any size, so most sizes
        # are for the others.
        model.neck.features, model.rpn.features = 128, 192
        model.rpn.anchor_sizes = (24.0, 32.0, 40.0, 64.0, 80.0, 144.0)
        model.rpn.aspect_ratios = (1.5,)
        model.rpn.sampling.update(
            {"samples": 256, "positive_iou": 0.5, "negative_iou": 0.45}
        )
        model.rpn.code.weights = (3.0, 3.0, 1.5, 1.5)
        model.selection.nms_iou = 0.3
    else:
        model.rpn.train.update({"pre_nms_top_n": 512, "post_nms_top_n": 128})
        model.rpn.test.update({"pre_nms_top_n": 512, "post_nms_top_n": 64})
        model.sampling.samples = 32
        model.sampling.positive_fraction = 0.5
    if network not in _FIRST_PAPER:
        model.pool.hidden_features = 128
        model.box.features = 256
        model.mimic.count = 4
        model.mimic.crop_size = 64
    if network == "mask_rcnn_fpn":
        config.data.mask_size = 56
        model.mask.update({"features": 32, "num_convs": 2})
        model.mask_pool.hidden_features = 128
    return config
