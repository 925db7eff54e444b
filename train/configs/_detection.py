"""Fields of a detector's configuration, beside those of every run.

The fields of `backbone` and `detector` are explained by the constructors that they are
arguments of.
"""

from dcn_jax.backbones import ResNet
from dcn_jax.rcnn import FasterRCNN
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
    Number,
    Row,
    Rule,
    Several,
    check_config,
)
from train.sections import arguments_of

# Section -> what is made of it.
CONSTRUCTORS = {"backbone": ResNet, "detector": FasterRCNN}


def get_config() -> ConfigDict:
    """Returns the defaults: Faster R-CNN with ResNet-50 and the paper's recipe."""
    config = _base.get_config()
    config.task = "detection"
    # Ground truth is padded to this many boxes an image; of an image with more objects,
    # the first are kept and the rest count as background.
    config.data.max_boxes = 100
    config.backbone = arguments_of(
        ResNet,
        depths=(3, 4, 6, 3),
        deform_stages=(False, True, True, True),
        dilate_conv5=True,
    )
    config.detector = arguments_of(FasterRCNN, mimic="fg")
    return config


# What the fields may hold, where neither the type of the default nor the constructor
# says it.
RULES: dict[str, Rule] = {
    **_base.RULES,
    "data.max_boxes": ROWS,
    "backbone.groups": COUNT,
    "backbone.width_per_group": COUNT,
    "backbone.stem_features": COUNT,
    "backbone.offset_groups": COUNT,
    "detector.pixel_mean": Row((Number(),) * 3),
    "detector.pixel_std": Row((POSITIVE,) * 3),
    "detector.anchor_sizes": Several(POSITIVE),
    "detector.aspect_ratios": Several(POSITIVE),
    "detector.rpn_features": COUNT,
    "detector.rpn_pre_nms_top_n": Row((COUNT, COUNT)),
    "detector.rpn_post_nms_top_n": Row((ROWS, ROWS)),
    "detector.rpn_nms_threshold": SHARE,
    "detector.rpn_samples": ROWS,
    "detector.rpn_positive_fraction": SHARE,
    "detector.rpn_positive_iou": SHARE,
    "detector.rpn_negative_iou": SHARE,
    "detector.reduction_features": COUNT,
    "detector.roi_output_size": COUNT,
    # 0: as many as the size of the RoI asks for.
    "detector.roi_sampling_ratio": WHOLE,
    "detector.roi_branch_features": COUNT,
    "detector.roi_samples": ROWS,
    "detector.roi_positive_fraction": SHARE,
    "detector.roi_positive_iou": SHARE,
    "detector.head_features": COUNT,
    "detector.box_weights": Row((POSITIVE,) * 4),
    "detector.mimic_count": ROWS,
    "detector.mimic_crop_size": SIDE,
    "detector.mimic_weight": NONNEGATIVE,
    "detector.score_threshold": SHARE,
    "detector.nms_threshold": SHARE,
    "detector.max_detections": ROWS,
    "detector.detection_candidates": COUNT,
}
# The first of each pair is at most the second.
ORDERED = (("detector.rpn_negative_iou", "detector.rpn_positive_iou"),)


def check(config: ConfigDict) -> None:
    """Refuses a configuration with unknown, missing or wrong fields.

    Raises:
      ValueError: One line that names the fields at fault.
    """
    check_config(config, get_config(), RULES, ORDERED)
