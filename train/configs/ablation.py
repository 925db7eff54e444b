"""The story of the DCNv2 paper in miniature, on digits that are deformed much more.

    python -m train.main --config=train/configs/ablation.py:ROW

ROW is one of regular, dconv_c5, dconv_c3_c5, dcnv2, dcnv2_mimic: the paper's layers on
a net of one block a stage, whose 3x3 convolutions see less than the largest digits.
Digits are rotated by up to 60 degrees, sheared, stretched and bent three times as much
as in the demo. All rows have the same images, steps and rates. `scripts/ablation` runs
them with several seeds; docs/ablation.md has what they reach.
"""

from train.config_dict import ConfigDict
from train.configs import _detection, digits
from train.configs.dcnv2 import LAYERS

# Row -> (layers, mimicking).
ROWS = {
    "regular": ("regular", False),
    "dconv_c5": ("dconv_c5", False),
    "dconv_c3_c5": ("dconv_c3_c5", False),
    "dcnv2": ("dcnv2", False),
    "dcnv2_mimic": ("dcnv2", True),
}


def get_config(arg: str = "dcnv2_mimic") -> ConfigDict:
    """Returns the configuration of a row.

    Raises:
      ValueError: There is no such row.
    """
    if arg not in ROWS:
        raise ValueError(f"ablation.py:{arg}: expected one of {tuple(ROWS)}.")
    config = digits.get_config()
    config.name = f"ablation_{arg}"
    config.steps = 1200
    config.batch_size = 4

    data = config.data
    data.options.update(
        {
            "train_images": 1800,
            "val_images": 300,
            "test_images": 300,
            "deformation": 3.0,
        }
    )
    # What is chosen is chosen by this split; scripts/ablation judges by "test".
    data.eval_split = "val"

    model = config.model
    model.backbone.depths = (1, 1, 1, 1)
    name, model.mimicking = ROWS[arg]
    layers = LAYERS[name]
    model.backbone.deform_blocks = layers.deform_blocks
    model.backbone.modulated = layers.modulated
    hidden = model.pool.hidden_features
    _detection.set_pool_layer(config, layers.pool_layer)
    if layers.pool_layer == "DeformRoIPool":
        model.pool.update({"modulated": layers.modulated, "hidden_features": hidden})
    # So that offsets grow in so few steps.
    config.optim.lr_multipliers = ()
    config.checkpoint.every = 500
    config.log.offset_health_every = 250
    return config
