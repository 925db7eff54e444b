"""Numbers that constructors of layers and heads take, and those that they refuse."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from dcn_jax.detection.box_head import BoxHead
from dcn_jax.detection.rpn import RPN
from dcn_jax.modules import DeformConv, DeformRoIPool, RoIAlign, linen
from dcn_jax.necks import DilatedConv5


@pytest.fixture(autouse=True)
def untyped(monkeypatch):
    """As for users, whose calls no type checker looks at."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def make(layer, **changes):
    arguments = {
        DeformConv: dict(in_features=4, out_features=6, kernel_size=3),
        DeformRoIPool: dict(
            in_features=4, output_size=2, spatial_scale=0.5, hidden_features=3
        ),
        BoxHead: dict(
            pool=RoIAlign(2, spatial_scale=1),
            in_features=4,
            num_classes=2,
            strides=(1,),
            features=3,
        ),
        RPN: dict(in_features=4, strides=(4,), features=3),
        DilatedConv5: dict(
            channels={"c4": 4, "c5": 8}, strides={"c4": 16, "c5": 16}, features=3
        ),
    }[layer]
    return layer(**{**arguments, "rngs": nnx.Rngs(0), **changes})


NUMBERS = [
    (DeformConv, "in_features"),
    (DeformConv, "out_features"),
    (DeformConv, "kernel_size"),
    (DeformConv, "strides"),
    (DeformConv, "kernel_dilation"),
    (DeformConv, "feature_group_count"),
    (DeformConv, "offset_groups"),
    (DeformRoIPool, "in_features"),
    (DeformRoIPool, "output_size"),
    (DeformRoIPool, "hidden_features"),
    (BoxHead, "in_features"),
    (BoxHead, "num_classes"),
    (BoxHead, "features"),
    (RPN, "in_features"),
    (RPN, "num_classes"),
    (RPN, "features"),
    (DilatedConv5, "features"),
]


@pytest.mark.parametrize(("layer", "name"), NUMBERS)
def test_bad_numbers(layer, name):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"`{name}` is {value}; expected at least"):
            make(layer, **{name: value})
    for value in (3.0, "3", None, True):
        with pytest.raises(TypeError, match=f"`{name}` is {value!r}; expected an int"):
            make(layer, **{name: value})


@pytest.mark.parametrize(
    ("layer", "changes", "error", "message"),
    [
        (DeformConv, dict(padding=-1), ValueError, "`padding` is -1; expected at l"),
        (DeformConv, dict(padding=1.5), TypeError, "`padding` is 1.5; expected an"),
        (DeformConv, dict(padding="same"), ValueError, "`padding` is 'same'; expec"),
        (DeformConv, dict(padding=(1, 1, 1)), ValueError, r"`padding` is \(1, 1, 1"),
        (DeformConv, dict(padding="CAUSAL"), ValueError, "`padding` is 'CAUSAL'; exp"),
        (
            DeformConv,
            dict(padding="REFLECT", kernel_size=(1, 3)),
            ValueError,
            r"`padding` is 'REFLECT' with `kernel_size` \(1, 3\)",
        ),
        (
            DeformConv,
            dict(padding="CIRCULAR", border="v1"),
            ValueError,
            "`border` is 'v1' with `padding` 'CIRCULAR'",
        ),
        (DeformConv, dict(precision="hi"), ValueError, "`precision` is 'hi'; expecte"),
        (DeformConv, dict(offset_in_features=0), ValueError, "`offset_in_features` i"),
        (DeformConv, dict(mask_scale=3), ValueError, "`mask_scale` is 3; expected 1"),
        (DeformConv, dict(mask_scale="2"), ValueError, "`mask_scale` is '2'; expect"),
        (DeformConv, dict(max_offset=-1), ValueError, "`max_offset` is -1.0; expect"),
        (DeformConv, dict(max_offset="3"), TypeError, "`max_offset` is '3'; expected"),
        (RPN, dict(strides=(0,)), ValueError, "`strides` is 0; expected at least 1"),
        (RPN, dict(anchor_sizes=(0,)), ValueError, r"`sizes` is \(0.0,\); expected"),
        (DeformRoIPool, dict(sampling_ratio=-1), ValueError, "`sampling_ratio` is -1"),
        (DeformRoIPool, dict(sampling_ratio=2.0), TypeError, "`sampling_ratio` is 2."),
        (DeformRoIPool, dict(spatial_scale=0), ValueError, "`spatial_scale` is 0; ex"),
        (DeformRoIPool, dict(spatial_scale=[1, -1]), ValueError, r"`spatial_scale` is"),
        (DeformRoIPool, dict(spatial_scale=()), ValueError, r"`spatial_scale` is \(\)"),
        (DeformRoIPool, dict(spatial_scale="1"), TypeError, "`spatial_scale` is '1';"),
        (DeformRoIPool, dict(spatial_scale=np.inf), ValueError, "`spatial_scale` is i"),
        (DeformRoIPool, dict(offset_scale=None), TypeError, "`offset_scale` is None"),
        (DeformRoIPool, dict(offset_scale=np.nan), ValueError, "`offset_scale` is nan"),
    ],
)
def test_bad_arguments(layer, changes, error, message):
    with pytest.raises(error, match=message):
        make(layer, **changes)


@pytest.mark.parametrize("layer", [DeformConv, DeformRoIPool, BoxHead, RPN])
def test_bad_rngs(layer):
    for rngs in (0, None, jax.random.key(0)):
        with pytest.raises(TypeError, match=r"`rngs` is .*; expected flax"):
            make(layer, rngs=rngs)
    with pytest.raises(ValueError, match="`rngs` has no stream `params`"):
        make(layer, rngs=nnx.Rngs(dropout=0))
    nnx.eval_shape(lambda: make(layer, rngs=nnx.Rngs(params=0)))


def test_a_scale_that_is_a_jax_array_is_refused_alike_under_jit():
    def build(scale):
        return nnx.state(make(DeformRoIPool, spatial_scale=scale))

    for call in (build, jax.jit(build)):
        with pytest.raises(TypeError, match=r"`spatial_scale` is .*; expected a"):
            call(jnp.asarray(0.5))


WINDOWS = [
    dict(kernel_size=np.int64(3), strides=np.int32(1), kernel_dilation=np.int64(1)),
    dict(kernel_size=np.asarray([3, 3]), strides=np.asarray([1, 1])),
    dict(kernel_size=[3, 3], strides=[1, 1], padding=[1, 1]),
    dict(padding=np.int64(1), feature_group_count=np.int64(1)),
    dict(padding=[[1, 1], [1, 1]], offset_groups=np.uint8(1)),
    dict(padding=np.asarray([[1, 1], [1, 1]]), mask_scale=np.int64(1)),
    dict(in_features=np.int64(4), out_features=np.int16(6)),
]


@pytest.mark.parametrize("window", WINDOWS)
def test_numbers_of_numpy_in_deform_conv(window):
    """Not as leaves of the module, which jax.jit would trace."""
    x = jnp.ones((1, 4, 5, 4))
    layer, plain = make(DeformConv, **window), make(DeformConv)
    assert len(jax.tree.leaves(layer)) == len(jax.tree.leaves(plain))
    run = jax.jit(lambda layer, x: layer(x))
    np.testing.assert_array_equal(run(layer, x), run(plain, x))
    if "in_features" not in window:
        sizes = dict(features=6, kernel_size=3)
        twin = linen.DeformConv(**{**sizes, **window})
        shape = jax.eval_shape(
            lambda x: twin.init_with_output(jax.random.key(0), x)[0], x
        )
        assert shape.shape == (1, 4, 5, 6)


@pytest.mark.parametrize(
    "changes",
    [
        dict(output_size=np.int64(2), sampling_ratio=np.int64(2)),
        dict(output_size=[2, 2], hidden_features=np.int64(3)),
        dict(spatial_scale=np.float32(0.5), offset_scale=np.float64(0.1)),
        dict(spatial_scale=np.asarray(0.5)),
    ],
)
def test_numbers_of_numpy_in_deform_roi_pool(changes):
    x, rois = jnp.ones((1, 4, 5, 4)), jnp.asarray([[[0.0, 0, 8, 6]]])
    run = jax.jit(lambda layer, x, rois: layer(x, rois))
    actual = run(make(DeformRoIPool, **changes), x, rois)
    np.testing.assert_array_equal(actual, run(make(DeformRoIPool), x, rois))


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_scales_of_a_pyramid(kind):
    x, rois = jnp.ones((1, 4, 5, 4)), jnp.asarray([[[0.0, 0, 8, 6]]])
    layer = make(DeformRoIPool, spatial_scale=kind([0.5, 0.25]))
    assert layer.spatial_scale == (0.5, 0.25)
    run = jax.jit(lambda layer, x: layer([x, x], rois, levels=jnp.zeros((1, 1), int)))
    assert run(layer, x).shape == (1, 1, 2, 2, 4)


@pytest.mark.parametrize("name", ["features", "strides", "mask_scale"])
def test_linen_names_its_own_arguments(name):
    with pytest.raises(ValueError, match=f"`{name}` is 0; expected"):
        linen.DeformConv(**{"features": 6, "kernel_size": 3, name: 0})
