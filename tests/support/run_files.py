"""What a run leaves of its network, without a run."""

from flax import nnx

from dcn_jax.categories import Category
from dcn_jax.detection.box_head import DetectionSelection
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.networks import NETWORKS
from dcn_jax.weights.detector import variables_of
from dcn_jax.weights.own_format import write_own
from tests.support.tiny_detector import filled

SMALL = Preprocessing(canvases=((48, 80),), short_side=48, max_side=80)
CATEGORIES = (Category(7, "cat"), Category(9, "dog", (1, 2, 3)), Category(12, "eel"))
BACKBONE = dict(
    depths=(1, 1, 1, 1),
    stem_features=8,
    output_stride=16,
    norm="group_norm",
    deform_blocks=(0, 0, 0, -1),
    modulated=False,
)
SETTINGS = {
    "class_aware_rpn": dict(
        backbone=BACKBONE,
        neck=dict(features=8, rpn_on_conv5=True),
        rpn=dict(features=8, anchor_sizes=(16, 32)),
        selection=DetectionSelection(max_detections=10),
    ),
    "deeplab": dict(backbone=BACKBONE, neck=dict(features=8)),
}
FILES = {
    "class_aware_rpn": "detector.safetensors",
    "deeplab": "segmenter.safetensors",
}


def write_run(folder, network, **told):
    """Writes what a run leaves; returns the network."""
    settings = SETTINGS[network]
    make = NETWORKS[network]
    model = filled(lambda: make(3, **settings, rngs=nnx.Rngs(0)))
    arguments = {"num_classes": 3, **settings}
    write_own(folder / FILES[network], network, arguments, variables_of(model), **told)
    return model
