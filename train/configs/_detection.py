"""Fields of a detector's configuration, beside those of every run.

The sections of `model` are explained by the constructors that they are arguments of.
"""

from typing import Any

from dcn_jax.backbones import ResNet
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.mask_head import MaskHead
from dcn_jax.detection.mimic import REDUCTIONS, REGIONS, Mimic
from dcn_jax.detection.rpn import RPN
from dcn_jax.modules.deform_conv import BORDERS
from dcn_jax.modules.norm import NORMS
from dcn_jax.necks import FPN, DilatedConv5
from dcn_jax.networks import MASK_NETWORKS, NETWORKS, POOL_LAYERS
from dcn_jax.trunk import Trunk
from train.config_dict import ConfigDict
from train.configs import _base
from train.rules import (
    COUNT,
    NONNEGATIVE,
    POSITIVE,
    ROWS,
    SHARE,
    SIDE,
    WHOLE,
    Integer,
    Number,
    OneOf,
    Row,
    Rule,
    Several,
    ZeroOr,
    check_config,
)
from train.sections import arguments_of

# Section of `model` -> what is made of it, beside `neck`, which the network decides,
# and the sections `pool` and `mask_pool`, whose layer `pool_layer` names.
_CONSTRUCTORS = {
    "backbone": ResNet,
    "trunk": Trunk,
    "rpn": RPN,
    "box": BoxHead,
    "mimic": Mimic,
    "sampling": RoISampling,
    "selection": DetectionSelection,
}
_NECKS = {
    "faster_rcnn": DilatedConv5,
    "faster_rcnn_fpn": FPN,
    "mask_rcnn_fpn": FPN,
}


def constructors(network: str) -> dict[str, Any]:
    """Returns section of `model` -> what is made of it, for a key of NETWORKS."""
    stages = {**_CONSTRUCTORS, "neck": _NECKS[network]}
    return {**stages, "mask": MaskHead} if network in MASK_NETWORKS else stages


def get_config(network: str = "faster_rcnn") -> ConfigDict:
    """Returns the defaults: ResNet-50 with DCNv2, and the paper's recipe.

    Args:
      network: A key of dcn_jax.networks.NETWORKS.
    """
    pyramid = _NECKS[network] is FPN
    config = _base.get_config()
    config.task = "detection"
    # Ground truth is padded to this many boxes an image; of an image with more objects,
    # the first are kept and the rest count as background.
    config.data.max_boxes = 100
    # Side in pixels of the masks that are learned, each drawn around its object: 112
    # for a network that predicts masks, 0 (none) for the others. The mask of an object
    # without a usable one is not learned; its box is.
    config.data.mask_size = 112 if network in MASK_NETWORKS else 0
    # The network: a key of dcn_jax.networks.NETWORKS.
    config.network = network
    config.model = model = ConfigDict()
    model.backbone = arguments_of(
        ResNet,
        depths=(3, 4, 6, 3),
        deform_blocks=(0, -1, -1, -1),
        output_stride=32 if pyramid else 16,
    )
    model.trunk = arguments_of(Trunk)
    model.neck = arguments_of(_NECKS[network])
    model.rpn = arguments_of(RPN)
    if pyramid:
        # One size a level, 32 to 512 pixels; as many boxes of each level (Detectron).
        model.rpn.update({"features": 256, "anchor_sizes": (32,)})
        model.rpn.train.pre_nms_top_n = 2000
        model.rpn.test.pre_nms_top_n = 1000
    # Proposals are of one class.
    del model.rpn["num_classes"]
    if network in MASK_NETWORKS:
        model.mask = arguments_of(MaskHead)
    set_pool_layer(config, "DeformRoIPool")
    model.box = arguments_of(BoxHead)
    model.sampling = arguments_of(RoISampling)
    model.selection = arguments_of(DetectionSelection)
    # Whether features are mimicked, as the section `mimic` says.
    model.mimicking = True
    model.mimic = arguments_of(Mimic)
    return config


def set_pool_layer(config: ConfigDict, name: str) -> None:
    """Chooses RoI pooling, a key of dcn_jax.networks.POOL_LAYERS, with its defaults."""
    config.model.pool_layer = name
    config.model.pool = arguments_of(POOL_LAYERS[name], output_size=7)
    if config.network in MASK_NETWORKS:
        config.model.mask_pool = arguments_of(POOL_LAYERS[name], output_size=14)


# What the fields may hold, where neither the type of the default nor the constructor
# says it.
RULES: dict[str, Rule] = {
    **_base.RULES,
    "data.max_boxes": ROWS,
    # Two of the pixels are a frame.
    "data.mask_size": ZeroOr(Integer(8, 512)),
    "network": OneOf(tuple(NETWORKS)),
    "model.backbone.depths": Row((COUNT,) * 4),
    "model.backbone.groups": COUNT,
    "model.backbone.width_per_group": COUNT,
    "model.backbone.stem_features": COUNT,
    "model.backbone.norm": OneOf(tuple(NORMS)),
    "model.backbone.deform_blocks": Row((Integer(at_least=-1),) * 4),
    "model.backbone.offset_groups": COUNT,
    "model.backbone.max_offset": NONNEGATIVE,
    "model.backbone.border": OneOf(BORDERS),
    "model.backbone.norm_epsilon": NONNEGATIVE,
    "model.backbone.output_stride": OneOf((16, 32)),
    "model.backbone.first_dilation": OneOf((1, 2)),
    "model.trunk.pixel_mean": Row((Number(),) * 3),
    "model.trunk.pixel_std": Row((POSITIVE,) * 3),
    "model.neck.features": COUNT,
    "model.rpn.features": COUNT,
    "model.rpn.anchor_sizes": Several(POSITIVE),
    "model.rpn.aspect_ratios": Several(POSITIVE),
    "model.rpn.loss_beta": NONNEGATIVE,
    "model.rpn.sampling.samples": ROWS,
    "model.rpn.sampling.positive_fraction": SHARE,
    "model.rpn.sampling.positive_iou": SHARE,
    "model.rpn.sampling.negative_iou": SHARE,
    **{
        f"model.rpn.{when}.{name}": rule
        for when in ("train", "test")
        for name, rule in (
            ("pre_nms_top_n", COUNT),
            ("post_nms_top_n", ROWS),
            ("nms_iou", SHARE),
            ("score_threshold", SHARE),
        )
    },
    "model.pool_layer": OneOf(tuple(POOL_LAYERS)),
    **{
        f"model.{pool}.{name}": rule
        for pool in ("pool", "mask_pool")
        for name, rule in (
            ("output_size", COUNT),
            # 0: as many as the size of the RoI asks for.
            ("sampling_ratio", WHOLE),
            ("hidden_features", COUNT),
        )
    },
    "model.box.features": COUNT,
    "model.box.loss_beta": NONNEGATIVE,
    "model.box.canonical_size": POSITIVE,
    "model.mask.features": COUNT,
    "model.mask.num_convs": COUNT,
    "model.mask.canonical_size": POSITIVE,
    "model.box.code.weights": Row((POSITIVE,) * 4),
    "model.rpn.code.weights": Row((POSITIVE,) * 4),
    "model.sampling.samples": ROWS,
    "model.sampling.positive_fraction": SHARE,
    "model.sampling.positive_iou": SHARE,
    "model.sampling.negative_iou": SHARE,
    "model.selection.score_threshold": SHARE,
    "model.selection.nms_iou": SHARE,
    "model.selection.max_detections": ROWS,
    "model.selection.candidates": COUNT,
    "model.mimic.regions": OneOf(REGIONS),
    "model.mimic.reduction": OneOf(REDUCTIONS),
    "model.mimic.count": ROWS,
    "model.mimic.crop_size": SIDE,
    "model.mimic.weight": NONNEGATIVE,
}
# The first of each pair is at most the second.
ORDERED = (
    ("model.rpn.sampling.negative_iou", "model.rpn.sampling.positive_iou"),
    ("model.sampling.negative_iou", "model.sampling.positive_iou"),
)


def check(config: ConfigDict) -> None:
    """Refuses a configuration with unknown, missing or wrong fields.

    Raises:
      ValueError: One line that names the fields at fault.
    """
    network = config.get("network")
    if isinstance(network, str) and network in NETWORKS:
        defaults = get_config(network)
    else:
        defaults = get_config()
    model = config.get("model")
    model = model if isinstance(model, ConfigDict) else ConfigDict()
    layer, found = model.get("pool_layer"), model.get("pool")
    if isinstance(layer, str) and layer in POOL_LAYERS:
        set_pool_layer(defaults, layer)
        fields = defaults.model.pool
        # `mask_pool` has those of the same layer, which `check_config` compares.
        if isinstance(found, ConfigDict) and set(found) != set(fields):
            raise ValueError(
                f"`model.pool_layer` is {layer!r}, and `model.pool` has the fields of "
                f"another layer; expected {', '.join(fields)}, as `set_pool_layer` of "
                f"train.configs._detection puts there."
            )
    check_config(config, defaults, RULES, ORDERED)
    _check_masks(config)


def _check_masks(config: ConfigDict) -> None:
    """Refuses masks that the network does not read, and to leave out those it does."""
    size, network = config.data.mask_size, config.network
    if size and network not in MASK_NETWORKS:
        raise ValueError(
            f"`data.mask_size` is {size}, and `network` is {network!r}, which learns "
            f"no masks; expected 0."
        )
    if not size and network in MASK_NETWORKS:
        raise ValueError(
            f"`data.mask_size` is 0, and `network` is {network!r}, which learns masks; "
            f"expected the side of those, such as 112."
        )
