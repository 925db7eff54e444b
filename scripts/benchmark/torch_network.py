"""The papers' Faster R-CNN on one level of stride 16, of torchvision's parts.

torchvision's ResNet, region proposal network, heads and operators, put together as
`dcn_jax.networks.faster_rcnn` puts ours: the sections of a configuration's `model` are
the arguments. For networks that deform by one offset group, and batches of one image.

torchvision has no deformable RoI pooling: `DeformRoIPool` takes its `roi_align` for the
bins in their places, and torch's `grid_sample` for the moved ones, which reads the
samples that `dcn_jax.modules.DeformRoIPool` reads, with gradients of their places.
"""

# pyright: reportMissingImports=false

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import resnet
from torchvision.models.detection import roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import deform_conv2d, roi_align
from torchvision.ops.misc import FrozenBatchNorm2d

_STRIDE = 16


class DeformConv(nn.Conv2d):
    """A 3x3 convolution that samples where a branch of its own says."""

    def __init__(self, conv, modulated):
        same = dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation)
        channels = conv.in_channels
        super().__init__(channels, conv.out_channels, 3, bias=False, **same)
        self.conv_offset = nn.Conv2d(channels, 27 if modulated else 18, 3, **same)

    def forward(self, x):
        """All offsets (dy, dx) come first, then all masks."""
        y = self.conv_offset(x)
        return deform_conv2d(
            x,
            y[:, :18],
            self.weight,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=torch.sigmoid(y[:, 18:]) if y.shape[1] > 18 else None,
        )


class RoIAlign(nn.Module):
    """The mean of bilinear samples of each bin."""

    def __init__(self, settings):
        super().__init__()
        self.size, self.ratio = settings["output_size"], settings["sampling_ratio"]

    def forward(self, features, proposals, image_shapes):
        """As torchvision's heads call their pooling."""
        (x,) = features.values()
        return roi_align(x, proposals, self.size, 1 / _STRIDE, self.ratio, aligned=True)


class DeformRoIPool(RoIAlign):
    """RoI pooling whose bins move to where a branch of its own says."""

    def __init__(self, settings, channels):
        super().__init__(settings)
        self.modulated, self.scale = settings["modulated"], settings["offset_scale"]
        bins, hidden = self.size**2, settings["hidden_features"]
        features = bins * channels
        if self.modulated:
            self.fc1 = nn.Linear(features, hidden)
            self.fc2 = nn.Linear(hidden, hidden)
            features = hidden
        self.offset_fc = nn.Linear(features, (3 if self.modulated else 2) * bins)

    def forward(self, features, proposals, image_shapes):
        """As torchvision's heads call their pooling."""
        (x,), (rois,) = features.values(), proposals
        size = self.size
        y = super().forward(features, proposals, image_shapes).flatten(1)
        if self.modulated:
            y = functional.relu(self.fc1(y))
            y = functional.relu(self.fc2(y))
        y = self.offset_fc(y)
        offset = self.scale * y[:, : 2 * size**2].reshape(-1, size, size, 2)
        pooled = self.moved(x, rois, offset)
        if self.modulated:
            mask = torch.sigmoid(y[:, 2 * size**2 :]).reshape(-1, 1, size, size)
            pooled = pooled * mask
        return pooled

    def moved(self, x, rois, offset):
        """The bins, moved by `offset` [B, h, w, (dy, dx)] in units of the RoI's size.

        A sample from -1 to the size of the map counts, and is moved onto the map.
        """
        low, high = rois[:, :2] / _STRIDE - 0.5, rois[:, 2:] / _STRIDE - 0.5
        steps = torch.arange(self.size * self.ratio).reshape(self.size, self.ratio)
        steps = (steps + 0.5) / (self.size * self.ratio)
        grid, inside = [], True
        # [B, h, w, samples down, samples across], first of x, then of y.
        for axis, shape in (
            (0, (1, 1, -1, 1, self.ratio)),
            (1, (1, -1, 1, self.ratio, 1)),
        ):
            side = (high - low)[:, axis].reshape(-1, 1, 1, 1, 1)
            start = low[:, axis].reshape(-1, 1, 1, 1, 1)
            along = steps.reshape(shape) + offset[..., 1 - axis, None, None]
            position = start + side * along
            length = x.shape[3 - axis]
            inside = inside & (position >= -1) & (position <= length)
            grid.append(2 * position / (length - 1) - 1)
        grid = torch.stack(torch.broadcast_tensors(*grid), -1)
        count, channels = len(rois), x.shape[1]
        samples = functional.grid_sample(
            x,
            grid.reshape(1, count, -1, 2),
            padding_mode="border",
            align_corners=True,
        )
        samples = samples.reshape(channels, count, self.size**2, self.ratio**2)
        samples = samples * inside.reshape(count, self.size**2, self.ratio**2)
        pooled = samples.mean(-1).transpose(0, 1)
        return pooled.reshape(count, channels, self.size, self.size)


class FasterRCNN(nn.Module):
    """The detector.

    Args:
      model: The section of that name of a configuration, as a dictionary.
      num_classes: Foreground classes.
    """

    def __init__(self, model, num_classes):
        super().__init__()
        self.body = _body(model["backbone"])
        features = model["neck"]["features"]
        self.reduction = nn.Conv2d(2048, features, 1)
        self.rpn = _rpn(model["rpn"])
        if model["pool_layer"] == "RoIAlign":
            pool = RoIAlign(model["pool"])
        else:
            pool = DeformRoIPool(model["pool"], features)
        hidden, sampling = model["box"]["features"], model["sampling"]
        selection = model["selection"]
        self.roi_heads = roi_heads.RoIHeads(
            pool,
            TwoMLPHead(features * pool.size**2, hidden),
            FastRCNNPredictor(hidden, num_classes + 1),
            sampling["positive_iou"],
            sampling["negative_iou"],
            sampling["samples"],
            sampling["positive_fraction"],
            tuple(model["box"]["code"]["weights"]),
            selection["score_threshold"],
            selection["nms_iou"],
            selection["max_detections"],
        )
        for name in ("pixel_mean", "pixel_std"):
            values = torch.tensor(model["trunk"][name]).reshape(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        frozen = ("conv1", "layer1", "layer2", "layer3", "layer4")
        for name in frozen[: model["backbone"]["frozen_stages"]]:
            self.body.get_submodule(name).requires_grad_(False)

    def forward(self, images, targets=None):
        """Losses by name of images [1, 3, H, W], 0 to 255; without targets, boxes."""
        x = (images.float() - self.pixel_mean) / self.pixel_std
        sizes = [tuple(images.shape[2:])]
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        conv4 = body.layer3(body.layer2(body.layer1(x)))
        reduced = functional.relu(self.reduction(body.layer4(conv4)))
        proposals, of_rpn = self.rpn(ImageList(images, sizes), {"0": conv4}, targets)
        found, of_roi = self.roi_heads({"0": reduced}, proposals, sizes, targets)
        return {**of_rpn, **of_roi} if self.training else found[0]


def _body(backbone):
    """The ResNet of torchvision, with conv5 dilated and blocks deformable."""
    body = resnet.ResNet(
        resnet.Bottleneck,
        list(backbone["depths"]),
        replace_stride_with_dilation=[False, False, True],
        norm_layer=FrozenBatchNorm2d,
    )
    del body.avgpool, body.fc
    stages = (body.layer1, body.layer2, body.layer3, body.layer4)
    for number, block in enumerate(body.layer4):
        dilation = backbone["dilation" if number else "first_dilation"]
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    for stage, count in zip(stages, backbone["deform_blocks"], strict=True):
        for block in stage if count == -1 else stage[len(stage) - count :]:
            block.conv2 = DeformConv(block.conv2, backbone["modulated"])
    return body


def _rpn(settings):
    sizes, ratios = settings["anchor_sizes"], settings["aspect_ratios"]
    features = settings["features"]
    head = rpn.RPNHead(features, len(sizes) * len(ratios))
    # torchvision's keeps the number of channels.
    head.conv[0][0] = nn.Conv2d(1024, features, 3, padding=1)
    sampling, train, test = (settings[name] for name in ("sampling", "train", "test"))
    return rpn.RegionProposalNetwork(
        AnchorGenerator((tuple(sizes),), (tuple(ratios),)),
        head,
        sampling["positive_iou"],
        sampling["negative_iou"],
        sampling["samples"],
        sampling["positive_fraction"],
        dict(training=train["pre_nms_top_n"], testing=test["pre_nms_top_n"]),
        dict(training=train["post_nms_top_n"], testing=test["post_nms_top_n"]),
        train["nms_iou"],
    )
