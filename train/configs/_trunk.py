"""What the fields of backbone, trunk and neck may hold, which every network has."""

from dcn_jax.modules.deform_conv_arguments import BORDERS
from dcn_jax.modules.norm import NORMS
from train.rules import (
    COUNT,
    NONNEGATIVE,
    POSITIVE,
    Integer,
    Number,
    OneOf,
    Row,
    Rule,
)

RULES: dict[str, Rule] = {
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
    "model.backbone.dilation": COUNT,
    "model.backbone.first_dilation": COUNT,
    "model.trunk.pixel_mean": Row((Number(),) * 3),
    "model.trunk.pixel_std": Row((POSITIVE,) * 3),
    "model.neck.features": COUNT,
}
