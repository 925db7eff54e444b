"""Names of torchvision's Faster and Mask R-CNN with FPN (the first versions)."""

from dcn_jax.weights.names.resnet import torchvision_resnet
from dcn_jax.weights.names.table import Row, Table

TORCHVISION = Table(
    (
        *torchvision_resnet("trunk.backbone.", "backbone.body."),
        Row("trunk.neck.lateral.{i}", "backbone.fpn.inner_blocks.{i}.0", "conv"),
        Row("trunk.neck.output.{i}", "backbone.fpn.layer_blocks.{i}.0", "conv"),
        Row("rpn.conv", "rpn.head.conv.0.0", "conv"),
        Row("rpn.classifier", "rpn.head.cls_logits", "conv"),
        Row("rpn.deltas", "rpn.head.bbox_pred", "conv"),
        Row("roi.fc6", "roi_heads.box_head.fc6", "pooled"),
        Row("roi.fc7", "roi_heads.box_head.fc7", "linear"),
        Row("roi.classifier", "roi_heads.box_predictor.cls_score", "classes"),
        Row("roi.regressor", "roi_heads.box_predictor.bbox_pred", "boxes"),
        Row("mask.convs.{i}", "roi_heads.mask_head.{i}.0", "conv"),
        Row("mask.deconv", "roi_heads.mask_predictor.conv5_mask", "deconv"),
        Row("mask.predictor", "roi_heads.mask_predictor.mask_fcn_logits", "masks"),
    ),
    # Until 0.12; the published files have these.
    older=(
        Row("trunk.neck.lateral.{i}", "backbone.fpn.inner_blocks.{i}", "conv"),
        Row("trunk.neck.output.{i}", "backbone.fpn.layer_blocks.{i}", "conv"),
        Row("rpn.conv", "rpn.head.conv", "conv"),
        Row("mask.convs.{i}", "roi_heads.mask_head.mask_fcn{i+1}", "conv"),
    ),
)
