"""Layers with weights of torch, beside what their owners' code computes."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from dcn_jax.modules import DeformConv, linen
from tests.support import torch_deform_conv as torch_loops
from tests.support.deform_conv import GoldenCase
from tests.support.golden import GOLDEN


def random_tensors(**shapes):
    rng = np.random.default_rng(0)
    return {
        name.replace("__", "."): rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def nchw(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def assert_runs_as(layer, expected, *maps):
    """What the layer makes of maps [N, C, H, W], beside an output [N, K, P, Q]."""
    run = jax.jit(lambda layer, *maps: layer(*maps))
    y = run(layer, *(jnp.asarray(np.moveaxis(x, 1, -1)) for x in maps))
    np.testing.assert_allclose(np.moveaxis(y, -1, 1), expected, rtol=1e-4, atol=1e-4)


def test_mmcvs_modulated_pack():
    """conv_offset, chunk into three, the first two joined, sigmoid of the third."""
    tensors = random_tensors(
        net__conv__weight=(4, 2, 3, 3),
        net__conv__bias=(4,),
        net__conv__conv_offset__weight=(2 * 27, 4, 3, 3),
        net__conv__conv_offset__bias=(2 * 27,),
    )
    x = nchw(1, 4, 5, 6)
    window = dict(stride=2, padding=1, dilation=1)
    branch = torch_loops.conv2d(
        x,
        tensors["net.conv.conv_offset.weight"],
        tensors["net.conv.conv_offset.bias"],
        **window,
    )
    o1, o2, mask = np.split(branch, 3, axis=1)
    expected = torch_loops.deform_conv2d(
        x,
        np.concatenate([o1, o2], axis=1),
        tensors["net.conv.weight"],
        torch_loops.sigmoid(mask),
        tensors["net.conv.bias"],
        groups=2,
        **window,
    )
    layer = DeformConv.from_torch(
        tensors,
        conv="net.conv",
        strides=2,
        padding=1,
        feature_group_count=2,
        offset_groups=2,
    )
    assert layer.modulated
    assert_runs_as(layer, expected, x)


def test_mmcvs_pack_of_the_first_version():
    tensors = random_tensors(
        weight=(3, 2, 3, 2),
        conv_offset__weight=(12, 2, 3, 2),
        conv_offset__bias=(12,),
    )
    x = nchw(1, 2, 5, 5)
    window = dict(stride=1, padding=1, dilation=2)
    offset = torch_loops.conv2d(
        x, tensors["conv_offset.weight"], tensors["conv_offset.bias"], **window
    )
    weight = tensors["weight"]
    expected = torch_loops.deform_conv2d(
        x, offset, weight, None, None, groups=1, **window
    )
    layer = DeformConv.from_torch(tensors, padding=1, kernel_dilation=2)
    assert not layer.modulated and layer.bias is None
    assert_runs_as(layer, expected, x)


def test_torchvisions_layer_with_branches_of_other_features():
    """Branches apart, one without a bias, that read features, and 2 * sigmoid."""
    tensors = random_tensors(
        deform__weight=(3, 2, 3, 3),
        deform__bias=(3,),
        offset_conv__weight=(18, 5, 3, 3),
        offset_conv__bias=(18,),
        modulator_conv__weight=(9, 5, 3, 3),
    )
    x, features = nchw(1, 2, 4, 5), nchw(1, 5, 4, 5)
    window = dict(stride=1, padding=1, dilation=1)
    offset, mask = (
        torch_loops.conv2d(
            features,
            tensors[f"{name}.weight"],
            tensors.get(f"{name}.bias"),
            **window,
        )
        for name in ("offset_conv", "modulator_conv")
    )
    expected = torch_loops.deform_conv2d(
        x,
        offset,
        tensors["deform.weight"],
        2 * torch_loops.sigmoid(mask),
        tensors["deform.bias"],
        groups=1,
        **window,
    )
    layer = DeformConv.from_torch(
        tensors,
        conv="deform",
        offset_conv="offset_conv",
        mask_conv="modulator_conv",
        padding=1,
        mask_scale=2,
    )
    assert_runs_as(layer, expected, x, features)
    twin = linen.DeformConv(3, 3, padding=1, mask_scale=2)
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    maps = [jnp.moveaxis(jnp.asarray(v), 1, -1) for v in (x, features)]
    y = jax.jit(twin.apply)({"params": params}, *maps)
    np.testing.assert_allclose(jnp.moveaxis(y, -1, 1), expected, rtol=1e-4, atol=1e-4)


def test_golden_offsets_through_a_branch_that_passes_them_on():
    """Torchvision's vectors: features are its offsets, and logits of its masks."""
    name = "deform_conv2d_v2_offset_groups2"
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    mask = golden["mask"].clip(1e-6, 1 - 1e-6)
    features = np.concatenate([golden["offset"], np.log(mask / (1 - mask))], axis=1)
    channels = features.shape[1]
    middle = np.zeros((channels, channels, 3, 3), np.float32)
    middle[:, :, 1, 1] = np.eye(channels)
    layer = DeformConv.from_torch(
        {"weight": golden["weight"], "conv_offset.weight": middle},
        padding=1,
        offset_groups=2,
    )
    assert tuple(golden["padding"]) == tuple(golden["stride"]) == (1, 1)
    assert_runs_as(layer, golden["output_f64"], golden["input"], features)
    case = GoldenCase(name, "float32")
    np.testing.assert_array_equal(layer.kernel[...], case.arguments[2])


GOOD = dict(weight=(3, 2, 3, 3), conv_offset__weight=(27, 2, 3, 3))


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    [
        (GOOD, dict(conv="deform"), "has no 'deform.weight'; it has 'weight', 'conv_"),
        (dict(weight=(3, 2, 3, 3)), {}, "has no 'conv_offset.weight'; it has 'weight'"),
        (GOOD | dict(weight=(3, 2, 3)), {}, r"'weight' of shape \(3, 2, 3\); expected"),
        (GOOD | dict(bias=(4,)), {}, r"has 'bias' of shape \(4,\); expected \(3,\)"),
        (GOOD | dict(weight=(3, 2, 1, 3)), {}, r"'conv_offset' has a kernel of \(3, 3"),
        (
            GOOD | dict(conv_offset__weight=(54, 2, 3, 3)),
            {},
            "'conv_offset' has 54 output channels; expected 18 or 27, 2 or 3 for each "
            r"of 9 taps and 1 groups \(`offset_groups`\)",
        ),
        (
            GOOD | dict(mask__weight=(9, 2, 3, 3)),
            dict(mask_conv="mask"),
            "'conv_offset' has 27 output channels; expected 18, 2 for each",
        ),
        (
            dict(
                weight=(3, 2, 3, 3),
                conv_offset__weight=(18, 2, 3, 3),
                mask__weight=(9, 4, 3, 3),
            ),
            dict(mask_conv="mask"),
            "'conv_offset' reads 2 channels, and 'mask' 4; expected the same",
        ),
    ],
)
def test_tensors_that_do_not_fit(shapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformConv.from_torch(random_tensors(**shapes), padding=1, **arguments)


def test_what_is_no_state_dict(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="`state_dict` is list; expected a mapping"):
        DeformConv.from_torch([], padding=1)
    tensors = random_tensors(**GOOD) | {"weight": [1.0]}
    with pytest.raises(TypeError, match=r"`state_dict\['weight'\]` is list; expected"):
        DeformConv.from_torch(tensors, padding=1)
