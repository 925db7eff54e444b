"""Of how many shapes the batches of a data set are, for each of which XLA compiles."""

import numpy as np
import pytest

from dcn_jax.images.fit import fit_canvases, resized_sizes
from train.configs import coco_faster_rcnn, dcnv1, dcnv2
from train.data.loader import plan_batches

# (height, width) of photographs: of VOC the longer side is 500, of COCO 640.
SHORT = (150, 250, 281, 333, 334, 357, 375, 400, 450, 499)
VOC = [size for n in SHORT for size in ((n, 500), (500, n))] + [(500, 500)]
COCO = [(h * 32 // 25, w * 32 // 25) for h, w in VOC] + [(480, 640), (427, 640)]
CITYSCAPES = [(1024, 2048)]
CONFIGS = {
    "VOC": (dcnv1.get_config("table3/rfcn/dconv_dpool"), VOC),
    "VOC, segmentation": (dcnv1.get_config("table1/deeplab_voc/3"), VOC),
    "Cityscapes": (dcnv1.get_config("table1/deeplab_cityscapes/3"), CITYSCAPES),
    "COCO, v1": (dcnv1.get_config("table5/rfcn/deformable"), COCO),
    "COCO, FPN": (dcnv1.get_config("released/fpn_coco/deformable"), COCO),
    "COCO, v2, 800": (dcnv2.get_config("table2/mask/dcnv2"), COCO),
    "COCO, v2, 1000": (dcnv2.get_config("table1/faster/dcnv2"), COCO),
    "COCO": (coco_faster_rcnn.get_config("dcnv2_mimic"), COCO),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mix_of_shapes_costs_at_most_six_compilations(name):
    config, photographs = CONFIGS[name]
    data = config.data
    shapes = set()
    for short_side in data.short_sides:
        sizes = np.repeat(photographs, 7, axis=0)
        sizes = resized_sizes(sizes, short_side, data.max_side)
        if data.crop:
            canvas, canvases = np.zeros(len(sizes), np.int64), [data.crop]
        else:
            canvases = data.canvases
            canvas, fitted = fit_canvases(sizes, canvases)
            # No photograph is made smaller than its row says.
            np.testing.assert_array_equal(fitted, sizes)
        number = np.arange(len(sizes))
        flip = np.zeros(len(sizes), bool)
        plan = plan_batches(number, canvas, sizes, flip, config.batch_size)
        shapes |= {(config.batch_size, *canvases[n]) for n in plan.canvas}
    assert 1 <= len(shapes) <= 6
