"""Fields of a detector's configuration, beside those of every run.

The sections of `model` are explained by the constructors that they are arguments of.
"""

from dcn_jax.backbones import ResNet
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.mimic import REDUCTIONS, REGIONS, Mimic
from dcn_jax.detection.rpn import RPN
from dcn_jax.modules.norm import NORMS
from dcn_jax.necks import DilatedConv5
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

# Section of `model` -> what is made of it, beside `pool`, which `pool_layer` names.
CONSTRUCTORS = {
    "backbone": ResNet,
    "trunk": Trunk,
    "neck": DilatedConv5,
    "rpn": RPN,
    "box": BoxHead,
    "mimic": Mimic,
    "sampling": RoISampling,
    "selection": DetectionSelection,
}


def get_config() -> ConfigDict:
    """Returns the defaults: Faster R-CNN with ResNet-50 and the paper's recipe."""
    config = _base.get_config()
    config.task = "detection"
    # Ground truth is padded to this many boxes an image; of an image with more objects,
    # the first are kept and the rest count as background.
    config.data.max_boxes = 100
    # Side in pixels of the masks that are learned, each drawn around its object: 112
    # for a network that predicts masks, 0 (none) for the others. The mask of an object
    # without a usable one is not learned; its box is.
    config.data.mask_size = 0
    # The network: a key of dcn_jax.networks.NETWORKS.
    config.network = "faster_rcnn"
    config.model = model = ConfigDict()
    model.backbone = arguments_of(
        ResNet,
        depths=(3, 4, 6, 3),
        deform_blocks=(0, -1, -1, -1),
        output_stride=16,
    )
    model.trunk = arguments_of(Trunk)
    model.neck = arguments_of(DilatedConv5)
    model.rpn = arguments_of(RPN)
    # Proposals are of one class.
    del model.rpn["num_classes"]
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
    "model.backbone.output_stride": OneOf((16, 32)),
    "model.trunk.pixel_mean": Row((Number(),) * 3),
    "model.trunk.pixel_std": Row((POSITIVE,) * 3),
    "model.neck.features": COUNT,
    "model.rpn.features": COUNT,
    "model.rpn.anchor_sizes": Several(POSITIVE),
    "model.rpn.aspect_ratios": Several(POSITIVE),
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
        )
    },
    "model.pool_layer": OneOf(tuple(POOL_LAYERS)),
    "model.pool.output_size": COUNT,
    # 0: as many as the size of the RoI asks for.
    "model.pool.sampling_ratio": WHOLE,
    "model.pool.hidden_features": COUNT,
    "model.box.features": COUNT,
    "model.box.box_weights": Row((POSITIVE,) * 4),
    "model.sampling.samples": ROWS,
    "model.sampling.positive_fraction": SHARE,
    "model.sampling.positive_iou": SHARE,
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
ORDERED = (("model.rpn.sampling.negative_iou", "model.rpn.sampling.positive_iou"),)


def check(config: ConfigDict) -> None:
    """Refuses a configuration with unknown, missing or wrong fields.

    Raises:
      ValueError: One line that names the fields at fault.
    """
    defaults = get_config()
    model = config.get("model")
    model = model if isinstance(model, ConfigDict) else ConfigDict()
    layer, found = model.get("pool_layer"), model.get("pool")
    if isinstance(layer, str) and layer in POOL_LAYERS:
        set_pool_layer(defaults, layer)
        fields = defaults.model.pool
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
