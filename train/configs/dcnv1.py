"""Every row of the DCNv1 paper's tables (Dai et al. 2017, arXiv:1703.06211).

    python -m train.main --config=train/configs/dcnv1.py:TABLE/SYSTEM/ROW \
        --config.data.options.folder=FOLDER --config.init_from=RESNET101

RESNET101 is torchvision's; FOLDER a VOCdevkit, Cityscapes' or COCO's folder. DeepLab on
VOC also wants SBD's, as --config.data.options.sbd. TABLE/SYSTEM/ROW is one of

    table1/SYSTEM/LAYERS      deformable convolutions: 0, 1 (res5c), 2, 3 (res5),
                              6 (res4b20 to res4b22 too)
    table3/SYSTEM/OFFSETS     dilation2, dilation4, dilation6, dilation8, dconv; and of
                              faster and rfcn dpool, dconv_dpool
    table5/SYSTEM/KIND        COCO; plain, deformable
    released/SYSTEM/KIND      the authors' code, whose figures are higher

and SYSTEM of the first two tables one of deeplab_voc, deeplab_cityscapes, rpn, faster,
rfcn; of table5 one of rpn, faster, rfcn; of released one of rfcn_voc, rfcn_coco,
faster_coco, fpn_coco (the entry to COCO's challenge of 2017), deeplab_voc and
deeplab_cityscapes. `python -m train.tables` lists them beside the printed figures.
Aligned-Inception-ResNet, the second net of Table 5, is left out. Table 2 is measured on
the run of table1/rfcn/3, by `python -m train.effective_dilation` with its --config.

The recipe is that of the authors' code. It counts an epoch of images and mirrored
images, which are two of ours; its rate is of one image, ours of a batch. The paper's
own, 30k and 45k steps of 8 images, are about as long. Different from the code are the
backbone's weights, with their means and the place of strides, which belong to them; RoI
pooling, which samples centres of sub-bins; boxes, which have no +1; and in DeepLab the
offset branches, dilated as the paper says. The rows of the paper have one group of
offsets, which its Table 4 counts, those of the code four in detection. Of the
class-aware RPN there is no code: see `dcn_jax.detection.one_stage`.
"""

from collections.abc import Callable
from typing import NamedTuple

from train.config_dict import ConfigDict
from train.configs import _detection, _segmentation


class Layers(NamedTuple):
    """Which layers deform."""

    deform_blocks: tuple[int, int, int, int] = (0, 0, 0, 0)
    # Dilation of conv5.
    dilation: int = 2
    # Whether RoI pooling deforms.
    pool: bool = False


RES5 = (0, 0, 0, 3)
LAYERS = {
    "0": Layers(),
    "1": Layers((0, 0, 0, 1)),
    "2": Layers((0, 0, 0, 2)),
    "3": Layers(RES5),
    "6": Layers((0, 0, 3, 3)),
}
OFFSETS = {
    **{f"dilation{d}": Layers(dilation=d) for d in (2, 4, 6, 8)},
    "dconv": Layers(RES5),
    "dpool": Layers(pool=True),
    "dconv_dpool": Layers(RES5, pool=True),
}
KINDS = {"plain": Layers(), "deformable": Layers(RES5, pool=True)}


def _without_pool(rows: dict[str, Layers]) -> dict[str, Layers]:
    """Rows of a system that pools no RoIs."""
    return {name: layers for name, layers in rows.items() if not layers.pool}


_PLAIN_OR_RES5 = {"plain": Layers(), "deformable": Layers(RES5)}
_ONE_MAP = ("deeplab_voc", "deeplab_cityscapes", "rpn")
_ROIS = ("faster", "rfcn")
# Table -> system -> rows.
TABLES: dict[str, dict[str, dict[str, Layers]]] = {
    "table1": {system: LAYERS for system in (*_ONE_MAP, *_ROIS)},
    "table3": {
        **{system: _without_pool(OFFSETS) for system in _ONE_MAP},
        **{system: OFFSETS for system in _ROIS},
    },
    "table5": {"rpn": _PLAIN_OR_RES5, **{system: KINDS for system in _ROIS}},
    "released": {
        **{system: KINDS for system in ("rfcn_voc", "rfcn_coco", "faster_coco")},
        "fpn_coco": {
            "plain": Layers(),
            # The last blocks of conv3 and conv4 too.
            "deformable": Layers((0, 1, 1, 3), pool=True),
        },
        **{system: _PLAIN_OR_RES5 for system in ("deeplab_voc", "deeplab_cityscapes")},
    },
}


def get_config(arg: str = "table3/rfcn/dconv_dpool") -> ConfigDict:
    """Returns the configuration of a row.

    Raises:
      ValueError: There is no such row.
    """
    table, system, row = (*arg.split("/", 2), "", "")[:3]
    systems = TABLES.get(table, {})
    if row not in systems.get(system, {}):
        if system in systems:
            expected = f"{table}/{system}/ with one of {tuple(systems[system])}"
        elif systems:
            expected = f"{table}/SYSTEM/ROW with a system of {tuple(systems)}"
        else:
            expected = f"TABLE/SYSTEM/ROW with a table of {tuple(TABLES)}"
        raise ValueError(f"dcnv1.py:{arg}: expected {expected}.")
    layers = systems[system][row]
    name, _, data = system.partition("_")
    config = _SYSTEMS[name](layers)
    _DATA[name, data or ("coco" if table == "table5" else "voc")](config)
    if table == "released" and config.task == "detection":
        config.model.backbone.offset_groups = 4
    config.name = "dcnv1_" + arg.replace("/", "_")
    return config


def _with_layers(config: ConfigDict, layers: Layers) -> ConfigDict:
    """Puts the backbone of a row there, and the recipe that all share."""
    config.model.backbone.update(
        {
            "depths": (3, 4, 23, 3),
            "deform_blocks": layers.deform_blocks,
            "modulated": False,
            "dilation": layers.dilation,
            "first_dilation": layers.dilation,
            "frozen_stages": 2,
        }
    )
    config.optim.update(
        {
            "weight_decay": 5e-4,
            "warmup_steps": 1000,
            "warmup_factor": 0.1,
            "clip_norm": 0.0,
            # Offset branches of convolutions learn as fast as all else.
            "lr_multipliers": (),
        }
    )
    return config


def _detector(network: str, layers: Layers) -> ConfigDict:
    config = _with_layers(_detection.get_config(network), layers)
    model = config.model
    model.selection.update({"score_threshold": 1e-3, "nms_iou": 0.3})
    if "train" in model.rpn:
        for selection in (model.rpn.train, model.rpn.test):
            selection.update({"pre_nms_top_n": 6000, "post_nms_top_n": 300})
    if "mimicking" in model:
        model.mimicking = False
    return config


def _class_aware_rpn(layers: Layers) -> ConfigDict:
    return _detector("class_aware_rpn", layers)


def _faster_rcnn(layers: Layers) -> ConfigDict:
    config = _detector("faster_rcnn", layers)
    config.model.sampling.update({"samples": 128, "least_iou": 0.1})
    _pool(config, layers, "DeformRoIPool")
    return config


def _faster_rcnn_fpn(layers: Layers) -> ConfigDict:
    config = _detector("faster_rcnn_fpn", layers)
    model = config.model
    model.neck.convolved_p6 = True
    model.rpn.features = 512
    for selection in (model.rpn.train, model.rpn.test):
        selection.update({"pre_nms_top_n": 12000, "post_nms_top_n": 2000})
    _hard_examples(config, of=2000, count=512)
    _pool(config, layers, "DeformRoIPoolByLevel")
    if layers.pool:
        model.pool.hidden_features = 0
    return config


def _r_fcn(layers: Layers) -> ConfigDict:
    config = _detector("r_fcn", layers)
    config.model.psroi.update({"deformable": layers.pool, "background_boxes": True})
    _hard_examples(config, of=300, count=128)
    config.optim.lr_multipliers = ((r"\.neck\.reduction\.", 3.0),)
    return config


def _pool(config: ConfigDict, layers: Layers, deformable: str) -> None:
    """Chooses RoI pooling: the maximum of rounded bins, or a deformable layer."""
    _detection.set_pool_layer(config, deformable if layers.pool else "RoIPool")
    if layers.pool:
        config.model.pool.update({"modulated": False, "sampling_ratio": 4})
        config.optim.lr_multipliers = ((r"\.offset_fc", 0.01),)


def _hard_examples(config: ConfigDict, *, of: int, count: int) -> None:
    """Learns from the hardest of all proposals and ground-truth boxes."""
    samples = of + config.data.max_boxes
    config.model.sampling.update(
        {"samples": samples, "positive_fraction": 1.0, "hardest": count}
    )


def _deeplab(layers: Layers) -> ConfigDict:
    config = _with_layers(_segmentation.get_config(), layers)
    config.optim.lr_multipliers = ((r"\.(offset_conv|reduction|score)\.bias$", 2.0),)
    return config


_SYSTEMS: dict[str, Callable[[Layers], ConfigDict]] = {
    "deeplab": _deeplab,
    "rpn": _class_aware_rpn,
    "faster": _faster_rcnn,
    "fpn": _faster_rcnn_fpn,
    "rfcn": _r_fcn,
}


def _voc(config: ConfigDict) -> None:
    data = config.data
    data.name, data.options.folder = "voc", ""
    data.train_split, data.eval_split = "2007_trainval+2012_trainval", "2007_test"
    _sides(data, 600, 1000, (800, 912, 1008))
    config.model.rpn.anchor_sizes = (128, 256, 512)
    config.model.selection.max_detections = 300
    _schedule(config, 4, 7, 4.83)


def _coco(config: ConfigDict) -> None:
    _coco_folder(config.data)
    _sides(config.data, 600, 1000, (800, 912, 1008))
    config.model.rpn.anchor_sizes = (64, 128, 256, 512)
    # Of the class-aware RPN nothing is known.
    _schedule(config, 4 if config.network == "faster_rcnn" else 8, 8, 5.333)


def _coco_fpn(config: ConfigDict) -> None:
    _coco_folder(config.data)
    _sides(config.data, 800, 1280, (1088, 1216, 1280))
    _schedule(config, 8, 7, 4, 6)
    # This code means losses over the batch.
    config.optim.update({"lr": 0.01, "weight_decay": 1e-4, "warmup_steps": 250})


def _coco_folder(data: ConfigDict) -> None:
    data.name, data.options.folder = "coco_instances", ""
    data.options.images = "{split}"
    data.options.annotations = "annotations/instances_{split}.json"
    data.train_split, data.eval_split = "train2017", "val2017"


def _voc_segmentation(config: ConfigDict) -> None:
    data = config.data
    data.name = "voc_segmentation"
    data.options.update({"folder": "", "sbd": ""})
    data.train_split, data.eval_split = "2012_train+sbd", "2012_val"
    _sides(data, 360, 600, (480, 544, 608))
    _schedule(config, 4, 12, 8)
    config.optim.warmup_steps = 0


def _cityscapes(config: ConfigDict) -> None:
    data = config.data
    data.name, data.options.folder = "cityscapes", ""
    data.train_split, data.eval_split = "train", "val"
    _sides(data, 1024, 2048, (2048,))
    data.canvases, data.crop = data.canvases[:1], (768, 1024)
    config.eval.batch_size = 4
    _schedule(config, 4, 53, 40.336)


# (system, data) -> what a row has of the data, and the length of its run.
_DATA: dict[tuple[str, str], Callable[[ConfigDict], None]] = {
    **{(name, "voc"): _voc for name in ("rpn", "faster", "rfcn")},
    **{(name, "coco"): _coco for name in ("rpn", "faster", "rfcn")},
    ("fpn", "coco"): _coco_fpn,
    ("deeplab", "voc"): _voc_segmentation,
    ("deeplab", "cityscapes"): _cityscapes,
}


def _sides(data: ConfigDict, short: int, cap: int, longs: tuple[int, ...]) -> None:
    """One size in training and testing, and canvases with these longer sides."""
    data.short_sides, data.eval_short_side, data.max_side = (short,), short, cap
    narrow = -(-short // 16) * 16
    data.canvases = tuple(
        shape for long in longs for shape in ((narrow, long), (long, narrow))
    )


def _schedule(config: ConfigDict, images: int, epochs: float, *drops: float) -> None:
    """Batch, rate, length, and where the rate drops, as the code counts them."""
    config.batch_size = images
    config.optim.lr = 5e-4 * images
    config.epochs = 2.0 * epochs
    config.optim.decay_at = tuple(drop / epochs for drop in drops)
