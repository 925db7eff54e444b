"""The gradient of whole detectors' losses, in float64, against finite differences."""

import jax
import jax.numpy as jnp
import pytest

from tests.support.derivatives import EARLY, LATE, Kind, assert_agree, derivatives
from tests.support.tiny_detector import make_detector, make_r_fcn, tiny_batch

# A parameter of each kind.
STAGE = ("trunk", "backbone")
FASTER = {
    "stem": Kind((*STAGE, "conv1", "kernel"), EARLY),
    "deformable kernel": Kind((*STAGE, "layer3", 0, "conv2", "kernel"), EARLY),
    "offset branch": Kind(
        (*STAGE, "layer3", 0, "conv2", "offset_conv", "kernel"), EARLY, slice(0, 18)
    ),
    "mask branch": Kind(
        (*STAGE, "layer4", 0, "conv2", "offset_conv", "kernel"), EARLY, slice(18, 27)
    ),
    "reduction": Kind(("trunk", "neck", "reduction", "kernel"), EARLY),
    "RoI branch, hidden": Kind(("roi", "pool", "fc1", "kernel"), LATE),
    "RoI branch, offsets": Kind(
        ("roi", "pool", "offset_fc", "bias"), LATE, slice(0, 18)
    ),
    "RoI branch, masks": Kind(
        ("roi", "pool", "offset_fc", "bias"), LATE, slice(18, 27)
    ),
    "RPN": Kind(("rpn", "conv", "kernel"), EARLY),
    "RPN boxes": Kind(("rpn", "deltas", "kernel"), LATE),
    "head": Kind(("roi", "fc6", "kernel"), LATE),
    "head boxes": Kind(("roi", "regressor", "kernel"), LATE),
    "mimic classifier": Kind(("mimic", "classifier", "kernel"), LATE),
}
R_FCN = {
    "stem": Kind((*STAGE, "conv1", "kernel"), EARLY),
    "offset branch": Kind(
        (*STAGE, "layer4", 0, "conv2", "offset_conv", "kernel"), EARLY
    ),
    "reduction": Kind(("trunk", "neck", "reduction", "kernel"), EARLY),
    "score maps": Kind(("roi", "scores", "maps", "kernel"), LATE),
    "offsets of scores": Kind(("roi", "scores", "offset_conv", "kernel"), LATE),
    "box maps": Kind(("roi", "boxes", "maps", "bias"), LATE),
    "offsets of boxes": Kind(("roi", "boxes", "offset_conv", "bias"), LATE),
}


@pytest.fixture(scope="module")
def of_faster_rcnn():
    with jax.enable_x64(True):
        results, targets = derivatives(
            lambda: make_detector(
                {"deform_blocks": (0, 0, -1, -1)}, mimic={}, param_dtype=jnp.float64
            ),
            tiny_batch(),
            FASTER,
        )
    assert targets.mimic.valid.any() and (targets.rpn.labels > 0).any()
    return results


@pytest.mark.parametrize("kind", FASTER)
def test_faster_rcnn_agrees_with_finite_differences(of_faster_rcnn, kind):
    assert_agree(of_faster_rcnn[kind])


@pytest.fixture(scope="module")
def of_r_fcn():
    with jax.enable_x64(True):
        results, targets = derivatives(
            lambda: make_r_fcn(
                {"deform_blocks": (0, 0, 0, -1)}, param_dtype=jnp.float64
            ),
            tiny_batch(),
            R_FCN,
        )
    assert (targets.box.labels > 0).any()
    return results


@pytest.mark.slow
@pytest.mark.parametrize("kind", R_FCN)
def test_r_fcn_agrees_with_finite_differences(of_r_fcn, kind):
    assert_agree(of_r_fcn[kind])
