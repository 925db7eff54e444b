"""Faster R-CNN with DCNv2 on a COCO folder: the paper's tables 1 to 3, ResNet-50.

    python -m train.main --config=train/configs/coco_faster_rcnn.py[:ROW] \
        --config.data.options.folder=COCO --config.init_from=resnet50.pth

The folder holds train2017/, val2017/ and annotations/instances_{train,val}2017.json.
ROW is one of these; beside it the paper's box AP on val2017:

    row                 short side 1000   ROW,800
    dcnv2_mimic               43.1                  (the default; table 3)
    dcnv2                     41.7          40.8    mdconv@c3~c5 + mdpool
    dconv_c3_c5               40.4          39.5    aligned RoI pooling
    dcnv1                     38.0          38.2    dconv@c5 + dpool
    regular                   34.7          35.6    aligned RoI pooling
    roi_pool                  32.1          32.8    regular, quantised RoI pooling

The recipe is that of its section 5.1: 8 devices with 2 images each, 16 epochs, rate
0.02, divided by 10 at epochs 10 and 14, weight decay 1e-4, offset branches at a tenth
of the rate. The paper refers to Detectron for the rest: frozen batch norm, frozen conv1
and conv2, linear warm-up, anchors of 32 to 512 pixels, mirrored images.
"""

from train.config_dict import ConfigDict
from train.configs import _detection

# Row -> (deformable blocks, modulated, RoI pooling, mimicking).
_ROWS = {
    "dcnv2_mimic": ((0, -1, -1, -1), True, "DeformRoIPool", True),
    "dcnv2": ((0, -1, -1, -1), True, "DeformRoIPool", False),
    "dconv_c3_c5": ((0, -1, -1, -1), False, "RoIAlign", False),
    "dcnv1": ((0, 0, 0, -1), False, "DeformRoIPool", False),
    "regular": ((0, 0, 0, 0), False, "RoIAlign", False),
    "roi_pool": ((0, 0, 0, 0), False, "RoIPool", False),
}
# Short side -> (cap of the long side, long sides of the canvases).
_SIZES = {"1000": (1667, (1344, 1504, 1680)), "800": (1333, (1088, 1216, 1344))}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration of "ROW" or "ROW,SHORT_SIDE"."""
    row, _, size = arg.partition(",")
    row, size = row or "dcnv2_mimic", size or "1000"
    if row not in _ROWS or size not in _SIZES:
        raise ValueError(
            f"coco_faster_rcnn.py:{arg}: expected ROW or ROW,SIZE with a row of "
            f"{tuple(_ROWS)} and a size of {tuple(_SIZES)}."
        )
    config = _detection.get_config()
    config.name = f"coco_{row}_{size}"
    config.epochs = 16.0
    config.batch_size = 16

    data = config.data
    data.name = "coco_instances"
    # The user's folder; and where in it a split's images and annotations lie.
    data.options.folder = ""
    data.options.images = "{split}"
    data.options.annotations = "annotations/instances_{split}.json"
    data.train_split = "train2017"
    data.eval_split = "val2017"
    short = int(size)
    data.max_side, long_sides = _SIZES[size]
    data.short_sides = (short,)
    data.eval_short_side = short
    # Multiples of the stride that hold the short side and the common aspect ratios.
    narrow = -(-short // 16) * 16
    data.canvases = tuple(
        shape for long in long_sides for shape in ((narrow, long), (long, narrow))
    )

    deform_blocks, modulated, pool_layer, mimicking = _ROWS[row]
    model = config.model
    model.backbone.deform_blocks = deform_blocks
    model.backbone.modulated = modulated
    model.backbone.frozen_stages = 2
    _detection.set_pool_layer(config, pool_layer)
    if pool_layer == "DeformRoIPool":
        model.pool.modulated = modulated
    model.mimicking = mimicking
    return config
