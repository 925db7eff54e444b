"""Every field of a configuration, commented once; experiments override what differs."""

from train.config_dict import ConfigDict
from train.rules import (
    Integer,
    Number,
    OneOf,
    Pattern,
    Row,
    Rule,
    Several,
    Text,
    check_config,
)


def get_config() -> ConfigDict:
    """Returns the defaults: Faster R-CNN with ResNet-50 and the paper's recipe."""
    config = ConfigDict()
    # What is trained: a key of train.tasks.TASKS.
    config.task = "detection"
    # Name of the experiment: without --workdir the run goes to runs/<name>.
    config.name = "base"
    # Seed of the initial parameters, the order of the images and all sampling.
    config.seed = 0
    # Type of the computation, "float32" or "bfloat16"; parameters stay float32.
    config.dtype = "float32"
    # File of torchvision's ResNet weights to start from (.pth, .safetensors), or "".
    config.init_from = ""
    # Length of the run: passes over the training images ...
    config.epochs = 16.0
    # ... or optimiser steps, where this is not 0.
    config.steps = 0
    # Images of one optimiser step, over all devices and processes.
    config.batch_size = 16
    # Folder that keeps compiled programs, so that a restart compiles nothing, or "".
    config.compile_cache = ""

    config.data = data = ConfigDict()
    # Data set: a name that train.data.source.make_source knows.
    data.name = "coco_instances"
    # Where prepared data sets are kept.
    data.data_dir = "data"
    # Options of the data set's builder: fields of its BuilderConfig.
    data.options = ConfigDict()
    data.train_split = "train"
    data.eval_split = "val"
    # (height, width) of the arrays that images are fitted into; each is compiled once.
    data.canvases = ((800, 1344), (1344, 800), (1088, 1088))
    # Training draws the short side of an image from these; none exceeds max_side.
    data.short_sides = (800,)
    # Short side in evaluation and prediction.
    data.eval_short_side = 800
    # Cap of the long side.
    data.max_side = 1333
    # Mirror every other training image, by chance.
    data.flip = True
    # Ground truth is padded to this many boxes an image; of an image with more objects,
    # the first are kept and the rest count as background.
    data.max_boxes = 100
    # Leave images without a usable object out of training.
    data.skip_empty = True
    # Turn photographs as their orientation tag (Exif) says, because the annotations
    # mean them as they are shown; COCO's mean the stored pixels.
    data.upright = False
    # Larger image files are refused before they are decoded: width * height.
    data.max_pixels = 64_000_000

    # Arguments of dcn_jax.backbones.ResNet.
    config.backbone = backbone = ConfigDict()
    # Bottleneck blocks of conv2..conv5: (3, 4, 6, 3) is ResNet-50.
    backbone.depths = (3, 4, 6, 3)
    # ResNeXt's groups of the 3x3 convolutions, and their width in conv2.
    backbone.groups = 1
    backbone.width_per_group = 64
    # Channels of the stem, to which all other widths are in proportion.
    backbone.stem_features = 64
    # "frozen_bn" (with init_from) or "group_norm" (what training from scratch needs).
    backbone.norm = "frozen_bn"
    # The first stages that keep their weights: 1 is the stem, 2 adds conv2; 0: none.
    backbone.frozen_stages = 0
    # Which of conv2..conv5 have deformable 3x3 convolutions.
    backbone.deform_stages = (False, True, True, True)
    # DCNv2's modulation; False is DCNv1.
    backbone.modulated = True
    # Groups of channels with offsets of their own.
    backbone.offset_groups = 1
    # The mask is mask_scale * sigmoid: 1 in the paper, 2 in its authors' code.
    backbone.mask_scale = 1
    # Keep conv5 at stride 16, its 3x3 convolutions dilated by 2.
    backbone.dilate_conv5 = True

    # Arguments of dcn_jax.rcnn.FasterRCNN.
    config.detector = detector = ConfigDict()
    # Sides in pixels of the RPN's square anchors, and all anchors' height / width.
    detector.anchor_sizes = (32.0, 64.0, 128.0, 256.0, 512.0)
    detector.aspect_ratios = (0.5, 1.0, 2.0)
    # Channels of the RPN's 3x3 convolution.
    detector.rpn_features = 512
    # (training, testing): boxes that enter the RPN's suppression, and that it leaves.
    detector.rpn_pre_nms_top_n = (12000, 6000)
    detector.rpn_post_nms_top_n = (2000, 1000)
    # IoU of that suppression.
    detector.rpn_nms_threshold = 0.7
    # Anchors of an image in the RPN's loss, and the largest share of positives.
    detector.rpn_samples = 256
    detector.rpn_positive_fraction = 0.5
    # Anchors are positive from the one IoU on, negative below the other.
    detector.rpn_positive_iou = 0.7
    detector.rpn_negative_iou = 0.3
    # Channels of the map that RoIs are pooled from.
    detector.reduction_features = 256
    # RoI pooling: "roi_align", "deform" (DCNv1) or "modulated" (DCNv2) ...
    detector.roi_pooling = "modulated"
    # ... with so many bins and samples a bin along each axis, and branch features.
    detector.roi_output_size = 7
    detector.roi_sampling_ratio = 2
    detector.roi_branch_features = 1024
    # RoIs of an image that the head is trained on, and the largest share of positives.
    detector.roi_samples = 512
    detector.roi_positive_fraction = 0.25
    # RoIs are positive from this IoU on, background below.
    detector.roi_positive_iou = 0.5
    # Width of the head's two fully connected layers.
    detector.head_features = 1024
    # One box per RoI instead of one per class.
    detector.class_agnostic_boxes = False
    # Which regions mimic R-CNN features: "none", "fg", "bg" or "fg_bg" ...
    detector.mimic = "fg"
    # ... how many an image, cropped to which side, with which weight of both losses.
    detector.mimic_count = 32
    detector.mimic_crop_size = 224
    detector.mimic_weight = 0.1
    # What the paper leaves open, see dcn_jax.mimic.
    detector.mimic_reduction = "sum"
    detector.mimic_detach_teacher = False
    detector.mimic_ground_truth = True
    # Detections: lowest score, IoU of the suppression by class, most of an image.
    detector.score_threshold = 0.05
    detector.nms_threshold = 0.5
    detector.max_detections = 100

    config.optim = optim = ConfigDict()
    # "sgd" (with momentum) or "adamw".
    optim.name = "sgd"
    # Peak rate, for batch_size images a step: scale both together.
    optim.lr = 0.02
    optim.momentum = 0.9
    # Not applied to biases and norms.
    optim.weight_decay = 1e-4
    # The rate rises linearly from warmup_factor * lr during the first warmup_steps.
    optim.warmup_steps = 500
    optim.warmup_factor = 1 / 3
    # At these fractions of the run the rate is multiplied by decay_factor.
    optim.decay_at = (10 / 16, 14 / 16)
    optim.decay_factor = 0.1
    # (regular expression, factor): multiplies the rate of the parameters whose path
    # it matches, the first match wins; 0 freezes them.
    optim.lr_multipliers = ((r"\.offset_conv\.", 0.1),)
    # Gradients are scaled down to this global norm; 0: never.
    optim.clip_norm = 35.0

    config.mesh = mesh = ConfigDict()
    # Devices that share each wide fully connected layer; the rest divide the batch.
    mesh.model = 1

    config.log = log = ConfigDict()
    # Steps between log lines.
    log.every = 50
    # Steps between measurements of the offsets (a multiple of `every`); 0: never.
    log.offset_health_every = 500
    # Report to Weights & Biases as well.
    log.wandb = False

    config.checkpoint = checkpoint = ConfigDict()
    # Steps between checkpoints; the last step is always saved.
    checkpoint.every = 2000
    # How many of the newest are kept.
    checkpoint.keep = 2

    config.eval = evaluation = ConfigDict()
    # Steps between evaluations; 0: only at the end.
    evaluation.every = 0
    # Images of one call of the network, over all devices.
    evaluation.batch_size = 8
    # How many of the images are drawn with what is predicted of them.
    evaluation.pictures = 8
    # What has a lower score is not drawn (all of it counts in the metric).
    evaluation.picture_score = 0.5
    return config


_COUNT = Integer(at_least=1)
_WHOLE = Integer(at_least=0)
_POSITIVE = Number(0, above=True)
_NONNEGATIVE = Number(0)
_SHARE = Number(0, 1)
# What arrays of memory are made of.
_SIDE = Integer(1, 1 << 15)
_ROWS = Integer(1, 1 << 17)
_BATCH = Integer(1, 1 << 16)

# What the fields above may hold, where neither the type of the default nor the class
# that they are arguments of says it.
RULES: dict[str, Rule] = {
    "task": Text(empty=False),
    "name": Text(empty=False),
    "seed": _WHOLE,
    "epochs": _NONNEGATIVE,
    "steps": _WHOLE,
    "batch_size": _BATCH,
    "data.name": Text(empty=False),
    "data.data_dir": Text(empty=False),
    "data.train_split": Text(empty=False),
    "data.eval_split": Text(empty=False),
    "data.canvases": Several(Row((_SIDE, _SIDE))),
    "data.short_sides": Several(_SIDE),
    "data.eval_short_side": _SIDE,
    "data.max_side": _SIDE,
    "data.max_boxes": _ROWS,
    "data.max_pixels": _COUNT,
    "backbone.groups": _COUNT,
    "backbone.width_per_group": _COUNT,
    "backbone.stem_features": _COUNT,
    "backbone.offset_groups": _COUNT,
    "detector.anchor_sizes": Several(_POSITIVE),
    "detector.aspect_ratios": Several(_POSITIVE),
    "detector.rpn_features": _COUNT,
    "detector.rpn_pre_nms_top_n": Row((_COUNT, _COUNT)),
    "detector.rpn_post_nms_top_n": Row((_ROWS, _ROWS)),
    "detector.rpn_nms_threshold": _SHARE,
    "detector.rpn_samples": _ROWS,
    "detector.rpn_positive_fraction": _SHARE,
    "detector.rpn_positive_iou": _SHARE,
    "detector.rpn_negative_iou": _SHARE,
    "detector.reduction_features": _COUNT,
    "detector.roi_output_size": _COUNT,
    # 0: as many as the size of the RoI asks for.
    "detector.roi_sampling_ratio": _WHOLE,
    "detector.roi_branch_features": _COUNT,
    "detector.roi_samples": _ROWS,
    "detector.roi_positive_fraction": _SHARE,
    "detector.roi_positive_iou": _SHARE,
    "detector.head_features": _COUNT,
    "detector.mimic_count": _ROWS,
    "detector.mimic_crop_size": _SIDE,
    "detector.mimic_weight": _NONNEGATIVE,
    "detector.score_threshold": _SHARE,
    "detector.nms_threshold": _SHARE,
    "detector.max_detections": _ROWS,
    "optim.name": OneOf(("sgd", "adamw")),
    "optim.lr": _NONNEGATIVE,
    "optim.momentum": _SHARE,
    "optim.weight_decay": _NONNEGATIVE,
    "optim.warmup_steps": _WHOLE,
    "optim.warmup_factor": _SHARE,
    "optim.decay_at": Several(Number(0, 1, above=True), empty=True, rising=True),
    "optim.decay_factor": _NONNEGATIVE,
    "optim.lr_multipliers": Several(Row((Pattern(), _NONNEGATIVE)), empty=True),
    "optim.clip_norm": _NONNEGATIVE,
    "mesh.model": _COUNT,
    "log.every": _COUNT,
    "log.offset_health_every": _WHOLE,
    "checkpoint.every": _COUNT,
    "checkpoint.keep": _COUNT,
    "eval.every": _WHOLE,
    "eval.batch_size": _BATCH,
    "eval.pictures": _WHOLE,
    "eval.picture_score": _SHARE,
}
# The first of each pair is at most the second.
ORDERED = (("detector.rpn_negative_iou", "detector.rpn_positive_iou"),)


def check(config: ConfigDict) -> None:
    """Refuses a configuration with unknown, missing or wrong fields.

    Raises:
      ValueError: One line that names the fields at fault.
    """
    check_config(config, get_config(), RULES, ORDERED)
