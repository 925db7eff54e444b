"""The papers' stories in miniature, on digits that are deformed much more.

    python -m train.main --config=train/configs/ablation.py:STUDY/ROW

STUDY/ROW is one of

    dcnv2/ROW       Faster R-CNN: regular, dconv_c5, dconv_c3_c5, dcnv2, dcnv2_mimic
    deeplab/LAYERS  the first paper's Table 1 with DeepLab: 0, 1, 3 or 6 deformable
                    layers, from the end of conv5 on
    rfcn/LAYERS     the same with R-FCN

Digits are rotated by up to 40 degrees, sheared, stretched and bent twice as much as in
the demo. All rows of a study have the same images, steps and rates, and go on from the
weights of a regular network, STUDY/start, as those of the papers do.
`scripts/ablation` runs them with several seeds.
"""

from train.config_dict import ConfigDict
from train.configs import _detection, dcnv1, digits
from train.configs.dcnv2 import LAYERS

# Row -> (layers, mimicking).
_DCNV2 = {
    "regular": ("regular", False),
    "dconv_c5": ("dconv_c5", False),
    "dconv_c3_c5": ("dconv_c3_c5", False),
    "dcnv2": ("dcnv2", False),
    "dcnv2_mimic": ("dcnv2", True),
}
_TABLE1 = ("0", "1", "3", "6")
START = "start"
# Study -> steps of a row, and of the regular network that it goes on from.
_STEPS = {"dcnv2": (1500, 3000), "deeplab": (1000, 4000), "rfcn": (1000, 3000)}
# The first row of each is regular.
STUDIES: dict[str, tuple[str, ...]] = {
    "dcnv2": tuple(_DCNV2),
    "deeplab": _TABLE1,
    "rfcn": _TABLE1,
}


def get_config(arg: str = "dcnv2/dcnv2_mimic") -> ConfigDict:
    """Returns the configuration of a row.

    Raises:
      ValueError: There is no such row.
    """
    study, _, row = arg.partition("/")
    if row == START and study in STUDIES:
        config = get_config(f"{study}/{STUDIES[study][0]}")
        config.name = f"ablation_{study}_{START}"
        config.steps = _STEPS[study][1]
        return config
    if row not in STUDIES.get(study, ()):
        expected = (
            f"{study}/ with one of {STUDIES[study]}"
            if study in STUDIES
            else f"STUDY/ROW with a study of {tuple(STUDIES)}"
        )
        raise ValueError(f"ablation.py:{arg}: expected {expected}.")
    config = _dcnv2(row) if study == "dcnv2" else _first_paper(study, row)
    config.steps = _STEPS[study][0]
    config.name = "ablation_" + arg.replace("/", "_")
    return config


def _harder(arg: str, side: int) -> ConfigDict:
    """A counterpart of the demo, on harder images of `side` pixels in place of 256."""
    config = digits.get_config(arg)
    config.batch_size = 4
    data = config.data
    data.options.update(
        {
            "train_images": 1800,
            "val_images": 300,
            "test_images": 300,
            "deformation": 2.0,
        }
    )
    # What is chosen is chosen by this split; scripts/ablation judges by "test".
    data.eval_split = "val"
    digits.set_side(config, side)
    if "rpn" in config.model:
        sizes = config.model.rpn.anchor_sizes
        config.model.rpn.anchor_sizes = tuple(size * side / 256 for size in sizes)
    config.log.offset_health_every = 250
    # Tables are of what is reached at the end.
    config.eval.every = 0
    return config


def _dcnv2(row: str) -> ConfigDict:
    config = _harder("", 160)
    model = config.model
    model.backbone.depths = (1, 1, 1, 1)
    # Regular convolutions see 75 pixels, and large digits are about 90.
    model.backbone.dilation = model.backbone.first_dilation = 1
    model.mimic.crop_size = 48
    name, model.mimicking = _DCNV2[row]
    layers = LAYERS[name]
    model.backbone.deform_blocks = layers.deform_blocks
    model.backbone.modulated = layers.modulated
    hidden = model.pool.hidden_features
    _detection.set_pool_layer(config, layers.pool_layer)
    if layers.pool_layer == "DeformRoIPool":
        model.pool.update({"modulated": layers.modulated, "hidden_features": hidden})
    return config


def _first_paper(study: str, layers: str) -> ConfigDict:
    config = _harder(study, 128)
    if study == "deeplab":
        config.optim.decay_at = (0.8, 0.95)
    # As many blocks as the rows deform.
    config.model.backbone.depths = (1, 1, 3, 3)
    config.model.backbone.deform_blocks = dcnv1.LAYERS[layers].deform_blocks
    if study == "rfcn":
        config.model.psroi.deformable = False
    return config
