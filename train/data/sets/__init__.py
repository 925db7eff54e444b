"""Data sets, one file each: a tfds builder and its configuration."""

from train.data.sets.coco_instances import CocoInstances, CocoInstancesConfig
from train.data.sets.deformed_digits import DeformedDigits, DeformedDigitsConfig

# By the name that `config.data.name` gives.
DATA_SETS = {
    "deformed_digits": (DeformedDigits, DeformedDigitsConfig),
    "coco_instances": (CocoInstances, CocoInstancesConfig),
}
