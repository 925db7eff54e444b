"""Names of mmdetection 2 and 3: Faster and Mask R-CNN with FPN, deformable or not."""

from dcn_jax.weights.names.resnet import torchvision_resnet
from dcn_jax.weights.names.table import Row, Table

_POOL = "roi_head.bbox_roi_extractor.roi_layers.{i}"

MMDETECTION = Table(
    (
        *torchvision_resnet("trunk.backbone.", "backbone."),
        Row("trunk.neck.lateral.{i}", "neck.lateral_convs.{i}.conv", "conv"),
        Row("trunk.neck.output.{i}", "neck.fpn_convs.{i}.conv", "conv"),
        Row("rpn.conv", "rpn_head.rpn_conv", "conv"),
        Row("rpn.classifier", "rpn_head.rpn_cls", "conv"),
        Row("rpn.deltas", "rpn_head.rpn_reg", "conv"),
        # Deformable pooling, with a branch for each level.
        Row("roi.pool.branches.{i}.offset_fc1", f"{_POOL}.offset_fc.0", "pooled"),
        Row("roi.pool.branches.{i}.offset_fc2", f"{_POOL}.offset_fc.2", "linear"),
        Row("roi.pool.branches.{i}.offset_fc3", f"{_POOL}.offset_fc.4", "offsets"),
        Row("roi.pool.branches.{i}.mask_fc1", f"{_POOL}.mask_fc.0", "pooled"),
        Row("roi.pool.branches.{i}.mask_fc2", f"{_POOL}.mask_fc.2", "linear"),
        Row("roi.fc6", "roi_head.bbox_head.shared_fcs.0", "pooled"),
        Row("roi.fc7", "roi_head.bbox_head.shared_fcs.1", "linear"),
        Row("roi.classifier", "roi_head.bbox_head.fc_cls", "classes"),
        Row("roi.regressor", "roi_head.bbox_head.fc_reg", "boxes"),
        Row("mask.convs.{i}", "roi_head.mask_head.convs.{i}.conv", "conv"),
        Row("mask.deconv", "roi_head.mask_head.upsample", "deconv"),
        Row("mask.predictor", "roi_head.mask_head.conv_logits", "masks"),
    )
)
