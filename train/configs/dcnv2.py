"""Every row of the DCNv2 paper's tables (Zhu et al. 2019, arXiv:1811.11168), on COCO.

    python -m train.main --config=train/configs/dcnv2.py:TABLE/ROW \
        --config.data.options.folder=COCO --config.init_from=WEIGHTS

The folder holds train2017/, val2017/ and annotations/instances_{train,val}2017.json;
WEIGHTS is torchvision's ResNet or ResNeXt. TABLE/ROW is one of

    table1/NET/LAYERS       shorter side 1000; NET: faster, mask
    table2/NET/LAYERS       shorter side 800
    table3/NET/LAYERS/WHAT  feature mimicking: none, fg, bg, fg_bg
    table4/NET/LAYERS/BODY  resnet50, resnet101, resnext101 (which is 32x8d; there are
                            resnext101_32x4d and _64x4d too); DCNv2 mimics
    figure4/NET/LAYERS      shorter side 1000; evaluated at `eval.sweep`

and LAYERS one of roi_pool, regular, dconv_c5, dcnv1, dconv_c4_c5, dconv_c3_c5,
dconv_c3_c5_dpool, dcnv2. `python -m train.tables` lists them beside the paper's
figures.

The recipe is that of section 5.1: 8 devices with 2 images each, 16 epochs, rate 0.02,
divided by 10 at epochs 10 and 14, weight decay 1e-4, offset branches at a tenth of the
rate. The paper refers to Detectron for the rest: frozen batch norm, frozen conv1 and
conv2, linear warm-up, anchors of 32 to 512 pixels, mirrored images.
"""

from typing import NamedTuple

from train.config_dict import ConfigDict
from train.configs import _detection


class Layers(NamedTuple):
    """Which layers deform, and which RoI pooling is used."""

    deform_blocks: tuple[int, int, int, int] = (0, 0, 0, 0)
    pool_layer: str = "RoIAlign"
    modulated: bool = False


LAYERS = {
    "roi_pool": Layers(pool_layer="RoIPool"),
    "regular": Layers(),
    "dconv_c5": Layers((0, 0, 0, -1)),
    "dcnv1": Layers((0, 0, 0, -1), "DeformRoIPool"),
    "dconv_c4_c5": Layers((0, 0, -1, -1)),
    "dconv_c3_c5": Layers((0, -1, -1, -1)),
    "dconv_c3_c5_dpool": Layers((0, -1, -1, -1), "DeformRoIPool"),
    "dcnv2": Layers((0, -1, -1, -1), "DeformRoIPool", modulated=True),
}
NETS = {"faster": "faster_rcnn", "mask": "mask_rcnn_fpn"}
# Arguments of `ResNet`. The paper does not say which ResNeXt-101 it has; torchvision
# has weights of 32x8d.
BODIES = {
    "resnet50": {"depths": (3, 4, 6, 3)},
    "resnet101": {"depths": (3, 4, 23, 3)},
    "resnext101": {"depths": (3, 4, 23, 3), "groups": 32, "width_per_group": 8},
    "resnext101_32x4d": {"depths": (3, 4, 23, 3), "groups": 32, "width_per_group": 4},
    "resnext101_64x4d": {"depths": (3, 4, 23, 3), "groups": 64, "width_per_group": 4},
}
MIMICKED = ("none", "fg", "bg", "fg_bg")
# Shorter side -> (cap of the longer side, longer sides of the canvases).
SIDES = {1000: (1667, (1344, 1504, 1680)), 800: (1333, (1088, 1216, 1344))}
# Table -> (shorter side, what a third part of the row may be).
TABLES = {
    "table1": (1000, ("",)),
    "table2": (800, ("",)),
    "table3": (1000, MIMICKED),
    "table4": (1000, tuple(BODIES)),
    "figure4": (1000, ("",)),
}
# Shorter sides of Figure 4.
SWEEP = (600, 700, 800, 900, 1000, 1100, 1200, 1300, 1400)


def get_config(arg: str = "table3/faster/dcnv2/fg") -> ConfigDict:
    """Returns the configuration of a row.

    Raises:
      ValueError: There is no such row.
    """
    table, net, layers, last = (*arg.split("/"), "", "", "", "")[:4]
    side, lasts = TABLES.get(table, (0, ()))
    if (
        arg != "/".join(filter(None, (table, net, layers, last)))
        or net not in NETS
        or layers not in LAYERS
        or last not in lasts
    ):
        raise ValueError(
            f"dcnv2.py:{arg}: expected TABLE/NET/LAYERS, in table3 and table4 with "
            f"/LAST, of the tables {tuple(TABLES)}, the nets {tuple(NETS)}, the layers "
            f"{tuple(LAYERS)}, and last {MIMICKED} or {tuple(BODIES)}."
        )
    mimicked = last if table == "table3" else "none"
    if table == "table4" and layers == "dcnv2":
        mimicked = "fg"
    body = BODIES[last if table == "table4" else "resnet50"]
    config = make_config(NETS[net], LAYERS[layers], side, body=body, mimicked=mimicked)
    config.name = "dcnv2_" + arg.replace("/", "_")
    if table == "figure4":
        config.eval.sweep = SWEEP
    return config


def make_config(
    network: str,
    layers: Layers,
    side: int,
    *,
    body: dict = BODIES["resnet50"],
    mimicked: str = "none",
) -> ConfigDict:
    """Returns the paper's recipe for a network, without a name.

    Args:
      network: A key of dcn_jax.networks.NETWORKS.
      layers: What of it deforms.
      side: Shorter side of the images, a key of `SIDES`.
      body: Arguments of `ResNet`.
      mimicked: Regions whose features are mimicked, of `MIMICKED`.
    """
    config = _detection.get_config(network)
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
    data.max_side, long_sides = SIDES[side]
    data.short_sides = (side,)
    data.eval_short_side = side
    # Multiples of 16 that hold the short side and the common aspect ratios.
    narrow = -(-side // 16) * 16
    data.canvases = tuple(
        shape for long in long_sides for shape in ((narrow, long), (long, narrow))
    )

    model = config.model
    model.backbone.update(body)
    model.backbone.deform_blocks = layers.deform_blocks
    model.backbone.modulated = layers.modulated
    model.backbone.frozen_stages = 2
    _detection.set_pool_layer(config, layers.pool_layer)
    if layers.pool_layer == "DeformRoIPool":
        for pool in {"pool", "mask_pool"} & set(model):
            model[pool].modulated = layers.modulated
    model.mimicking = mimicked != "none"
    if model.mimicking:
        model.mimic.regions = mimicked
    return config
