"""Data sets, one file each: a tfds builder and its configuration."""

from train.data.sets.cityscapes import CityscapesConfig, CityscapesFine
from train.data.sets.coco_instances import CocoInstances, CocoInstancesConfig
from train.data.sets.deformed_digits import DeformedDigits, DeformedDigitsConfig
from train.data.sets.voc_detection import VocDetection, VocDetectionConfig
from train.data.sets.voc_segmentation import VocSegmentation, VocSegmentationConfig

# By the name that `config.data.name` gives.
DATA_SETS = {
    "deformed_digits": (DeformedDigits, DeformedDigitsConfig),
    "coco_instances": (CocoInstances, CocoInstancesConfig),
    "voc": (VocDetection, VocDetectionConfig),
    "voc_segmentation": (VocSegmentation, VocSegmentationConfig),
    "cityscapes": (CityscapesFine, CityscapesConfig),
}
