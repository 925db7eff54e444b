"""Faster R-CNN with DCNv2 on a COCO folder: the paper's rows with ResNet-50, by name.

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

train/configs/dcnv2.py has every row of the paper's tables, and says what the recipe is.
"""

from train.config_dict import ConfigDict
from train.configs import dcnv2

# Row -> (layers, mimicking).
_ROWS = {
    "dcnv2_mimic": ("dcnv2", "fg"),
    **{
        layers: (layers, "none")
        for layers in ("dcnv2", "dconv_c3_c5", "dcnv1", "regular", "roi_pool")
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration of "ROW" or "ROW,SHORT_SIDE"."""
    row, _, size = arg.partition(",")
    row, size = row or "dcnv2_mimic", size or "1000"
    sizes = tuple(map(str, dcnv2.SIDES))
    if row not in _ROWS or size not in sizes:
        raise ValueError(
            f"coco_faster_rcnn.py:{arg}: expected ROW or ROW,SIZE with a row of "
            f"{tuple(_ROWS)} and a size of {sizes}."
        )
    layers, mimicked = _ROWS[row]
    config = dcnv2.make_config(
        "faster_rcnn", dcnv2.LAYERS[layers], int(size), mimicked=mimicked
    )
    config.name = f"coco_{row}_{size}"
    return config
