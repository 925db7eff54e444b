"""Deformable RoI pooling with a branch for each level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.modules import DeformRoIPoolByLevel
from xla_ops import deform_roi_pool


def filled(modulated, hidden_features=8):
    layer = DeformRoIPoolByLevel(
        4,
        3,
        spatial_scale=(1 / 4, 1 / 8),
        hidden_features=hidden_features,
        modulated=modulated,
        sampling_ratio=2,
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)
    graph, state = nnx.split(layer)
    state = jax.tree.map(
        lambda v: jnp.asarray(rng.normal(size=v.shape), jnp.float32), state
    )
    return nnx.merge(graph, state)


def inputs():
    rng = np.random.default_rng(1)
    features = [
        jnp.asarray(rng.normal(size=(2, side, side, 4)), jnp.float32)
        for side in (16, 8)
    ]
    corners = np.sort(rng.uniform(0, 64, (2, 5, 2, 2)), axis=2)
    rois = jnp.asarray(corners.reshape(2, 5, 4), jnp.float32)
    levels = jnp.asarray(rng.integers(0, 2, (2, 5)), jnp.int32)
    return features, rois, levels


@pytest.mark.parametrize(("modulated", "hidden"), [(False, 8), (True, 8), (False, 0)])
def test_each_roi_takes_the_branch_of_its_level(modulated, hidden):
    layer = filled(modulated, hidden)
    assert hasattr(layer.branches[0], "offset_fc1") == (hidden > 0)
    features, rois, levels = inputs()
    assert 0 < levels.sum() < levels.size
    pooled = layer(features, rois, None, levels)
    for level, branch in enumerate(layer.branches):
        pool = dict(output_size=3, spatial_scale=1 / 4 / 2**level, sampling_ratio=2)
        plain = deform_roi_pool(features[level], rois, **pool)
        offset, mask = branch(plain.reshape(2, 5, -1))
        assert (mask is not None) == modulated
        alone = deform_roi_pool(
            features[level], rois, offset, mask, offset_scale=0.1, **pool
        )
        here = np.asarray(levels) == level
        np.testing.assert_allclose(
            np.asarray(pooled)[here], np.asarray(alone)[here], atol=1e-5
        )


def test_it_starts_as_aligned_pooling():
    layer = DeformRoIPoolByLevel(
        4, 3, spatial_scale=1 / 4, modulated=False, hidden_features=8, rngs=nnx.Rngs(0)
    )
    features, rois, _ = inputs()
    np.testing.assert_allclose(
        layer(features[0], rois),
        deform_roi_pool(
            features[0], rois, output_size=3, spatial_scale=1 / 4, sampling_ratio=0
        ),
        atol=1e-6,
    )
    assert len(layer.branches) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_features": -1}, "`hidden_features` is -1"),
        ({"output_size": 0}, "`output_size`"),
        ({"offset_scale": float("nan")}, "`offset_scale`"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(in_features=4, output_size=3, spatial_scale=0.25)
    with pytest.raises(ValueError, match=message):
        DeformRoIPoolByLevel(**(arguments | change), rngs=nnx.Rngs(0))
