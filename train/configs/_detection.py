"""Fields of a detector's configuration, beside those of every run.

The sections of `model` are explained by the constructors that they are arguments of.
"""

from typing import Any

from dcn_jax.backbones import ResNet
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.mask_head import MaskHead
from dcn_jax.detection.mimic import REDUCTIONS, REGIONS, Mimic
from dcn_jax.detection.psroi_head import PSRoIHead
from dcn_jax.detection.rpn import RPN
from dcn_jax.necks import FPN, DilatedConv5
from dcn_jax.networks import MASK_NETWORKS, POOL_LAYERS
from dcn_jax.trunk import Trunk
from train.config_dict import ConfigDict
from train.configs import _base, _trunk
from train.rules import (
    COUNT,
    NONNEGATIVE,
    POSITIVE,
    ROWS,
    SHARE,
    SIDE,
    WHOLE,
    Integer,
    OneOf,
    Row,
    Rule,
    Several,
    ZeroOr,
    check_config,
)
from train.sections import arguments_of

# Sections of `model` -> what is made of them, beside the sections `pool` and
# `mask_pool`, whose layer `pool_layer` names.
_TWO_STAGES = {
    "backbone": ResNet,
    "trunk": Trunk,
    "rpn": RPN,
    "sampling": RoISampling,
    "selection": DetectionSelection,
}
_BOXES = {**_TWO_STAGES, "box": BoxHead, "mimic": Mimic}
# Those of every detector among dcn_jax.networks.NETWORKS.
_CONSTRUCTORS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {**_BOXES, "neck": DilatedConv5},
    "faster_rcnn_fpn": {**_BOXES, "neck": FPN},
    "mask_rcnn_fpn": {**_BOXES, "neck": FPN, "mask": MaskHead},
    "r_fcn": {**_TWO_STAGES, "neck": DilatedConv5, "psroi": PSRoIHead},
    "class_aware_rpn": {
        "backbone": ResNet,
        "trunk": Trunk,
        "neck": DilatedConv5,
        "rpn": RPN,
        "selection": DetectionSelection,
    },
}
NETWORKS = tuple(_CONSTRUCTORS)


def constructors(network: str) -> dict[str, Any]:
    """Returns section of `model` -> what is made of it, for one of NETWORKS."""
    return dict(_CONSTRUCTORS[network])


def get_config(network: str = "faster_rcnn") -> ConfigDict:
    """Returns the defaults: ResNet-50 with DCNv2, and the paper's recipe.

    Args:
      network: One of NETWORKS.
    """
    stages = constructors(network)
    pyramid = stages["neck"] is FPN
    config = _base.get_config()
    config.task = "detection"
    # Ground truth is padded to this many boxes an image; of an image with more objects,
    # the first are kept and the rest count as background.
    config.data.max_boxes = 100
    # Side in pixels of the masks that are learned, each drawn around its object: 112
    # for a network that predicts masks, 0 (none) for the others. The mask of an object
    # without a usable one is not learned; its box is.
    config.data.mask_size = 112 if network in MASK_NETWORKS else 0
    # The network: a detector among dcn_jax.networks.NETWORKS.
    config.network = network
    config.model = model = ConfigDict()
    changes: dict[str, dict[str, Any]] = {
        "backbone": {
            "depths": (3, 4, 6, 3),
            "deform_blocks": (0, -1, -1, -1),
            "output_stride": 32 if pyramid else 16,
        }
    }
    for name, make in stages.items():
        model[name] = arguments_of(make, **changes.get(name, {}))
    if pyramid:
        # One size a level, 32 to 512 pixels; as many boxes of each level (Detectron).
        model.rpn.update({"features": 256, "anchor_sizes": (32,)})
        model.rpn.train.pre_nms_top_n = 2000
        model.rpn.test.pre_nms_top_n = 1000
    # Proposals are of one class, and what has classes proposes nothing.
    del model.rpn["num_classes"]
    if network == "class_aware_rpn":
        del model.rpn["train"], model.rpn["test"]
        model.neck.rpn_on_conv5 = True
    if network in ("class_aware_rpn", "r_fcn"):
        model.neck.features = 1024
    if "box" in model:
        set_pool_layer(config, "DeformRoIPool")
        # Whether features are mimicked, as the section `mimic` says.
        model.mimicking = True
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
    **_trunk.RULES,
    "data.max_boxes": ROWS,
    # Two of the pixels are a frame.
    "data.mask_size": ZeroOr(Integer(8, 512)),
    "network": OneOf(NETWORKS),
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
            # 0, none, is for DeformRoIPoolByLevel alone, which says so.
            ("hidden_features", WHOLE),
        )
    },
    "model.psroi.bins": COUNT,
    "model.psroi.samples_per_part": COUNT,
    "model.psroi.loss_beta": NONNEGATIVE,
    "model.psroi.code.weights": Row((POSITIVE,) * 4),
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
    "model.sampling.least_iou": SHARE,
    "model.sampling.hardest": ZeroOr(ROWS),
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
    ("model.sampling.least_iou", "model.sampling.negative_iou"),
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
    pools = "pool_layer" in defaults.model
    if pools and isinstance(layer, str) and layer in POOL_LAYERS:
        set_pool_layer(defaults, layer)
        fields = defaults.model.pool
        # `mask_pool` has those of the same layer, which `check_config` compares.
        if isinstance(found, ConfigDict) and set(found) != set(fields):
            raise ValueError(
                f"`model.pool_layer` is {layer!r}, and `model.pool` has the fields of "
                f"another layer; expected {', '.join(fields)}, as `set_pool_layer` of "
                f"train.configs._detection puts there."
            )
    ordered = [pair for pair in ORDERED if pair[0].split(".")[1] in defaults.model]
    check_config(config, defaults, RULES, ordered)
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
