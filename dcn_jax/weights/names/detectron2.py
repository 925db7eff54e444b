"""Names of detectron2's Faster and Mask R-CNN with FPN, deformable or not."""

from dcn_jax.weights.names.table import Row, Table

_OURS = "trunk.backbone."
_BLOCK = "backbone.bottom_up.res{l+1}.{b}"

DETECTRON2 = Table(
    (
        Row(f"{_OURS}conv1", "backbone.bottom_up.stem.conv1", "stem"),
        Row(f"{_OURS}norm1", "backbone.bottom_up.stem.conv1.norm", "norm"),
        Row(f"{_OURS}layer{{l}}.{{b}}.conv{{k}}", f"{_BLOCK}.conv{{k}}", "conv"),
        Row(f"{_OURS}layer{{l}}.{{b}}.norm{{k}}", f"{_BLOCK}.conv{{k}}.norm", "norm"),
        Row(
            f"{_OURS}layer{{l}}.{{b}}.conv2.offset_conv",
            f"{_BLOCK}.conv2_offset",
            "conv",
        ),
        Row(f"{_OURS}layer{{l}}.{{b}}.downsample_conv", f"{_BLOCK}.shortcut", "conv"),
        Row(
            f"{_OURS}layer{{l}}.{{b}}.downsample_norm",
            f"{_BLOCK}.shortcut.norm",
            "norm",
        ),
        Row("trunk.neck.lateral.{i}", "backbone.fpn_lateral{i+2}", "conv"),
        Row("trunk.neck.output.{i}", "backbone.fpn_output{i+2}", "conv"),
        Row("rpn.conv", "proposal_generator.rpn_head.conv", "conv"),
        Row("rpn.classifier", "proposal_generator.rpn_head.objectness_logits", "conv"),
        Row("rpn.deltas", "proposal_generator.rpn_head.anchor_deltas", "conv"),
        Row("roi.fc6", "roi_heads.box_head.fc1", "pooled"),
        Row("roi.fc7", "roi_heads.box_head.fc2", "linear"),
        Row("roi.classifier", "roi_heads.box_predictor.cls_score", "classes"),
        Row("roi.regressor", "roi_heads.box_predictor.bbox_pred", "boxes"),
        Row("mask.convs.{i}", "roi_heads.mask_head.mask_fcn{i+1}", "conv"),
        Row("mask.deconv", "roi_heads.mask_head.deconv", "deconv"),
        Row("mask.predictor", "roi_heads.mask_head.predictor", "masks"),
    )
)
