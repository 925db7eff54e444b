"""The project's own networks are explained; traced only, nothing is compiled."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dcn_jax.explain import bin_locations, convolutions, sampling_locations
from tests.support.tiny_detector import make_detector, make_mask_rcnn

IMAGE, SIZES = jnp.zeros((64, 64, 3)), jnp.asarray([[64, 64]])
ROIS = jnp.asarray([[[4.0, 4.0, 40.0, 30.0], [10.0, 10.0, 60.0, 60.0]]])
DEFORMABLE = {"deform_blocks": (0, 1, 1, 1)}


def conv5(model, x):
    return model.features(x, SIZES).levels.roi[-1]


def representation(model, x):
    return model.roi.represent(model.features(x, SIZES), ROIS)


def shapes(function, make):
    return jax.eval_shape(function, nnx.eval_shape(make))


def test_a_detector_on_conv5():
    def make():
        return make_detector(DEFORMABLE)

    found = convolutions(nnx.eval_shape(make), conv5, IMAGE)
    assert [(c.name, c.deformable, c.output_size) for c in found[-2:]] == [
        ("trunk.backbone.layer3.0.conv2", True, (4, 4)),
        ("trunk.backbone.layer4.0.conv2", True, (4, 4)),
    ]
    points = shapes(
        lambda m: sampling_locations(m, conv5, IMAGE, [(1, 2)], gradient=True), make
    )
    assert points.gradient.shape == (1, 729, 2)
    bins = shapes(
        lambda m: bin_locations(m, representation, IMAGE, [(1,)], gradient=True), make
    )
    assert bins.gradient.shape == (1, 3, 3, 2)


def test_a_detector_on_a_pyramid():
    def make():
        return make_mask_rcnn(DEFORMABLE)

    bins = shapes(
        lambda m: bin_locations(m, representation, IMAGE, [(1,)], gradient=True), make
    )
    assert bins.gradient.shape == (1, 3, 3, 2)
    # The last convolutions to run are those of the pyramid's levels, side by side.
    with pytest.raises(ValueError, match=r"`layers`: trunk\.neck\.output.* or other"):
        shapes(lambda m: sampling_locations(m, conv5, IMAGE, [(0, 0)]), make)
    names = ["trunk.neck.output.3", "trunk.backbone.layer4.0.conv2"]
    points = shapes(
        lambda m: sampling_locations(m, conv5, IMAGE, [(0, 0)], layers=names), make
    )
    assert points.position.shape == (1, 81, 2)
