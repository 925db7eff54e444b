from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dcn_jax.backbones import ResNet, resnet50, resnet101
from dcn_jax.modules import DeformConv
from dcn_jax.modules.norm import FrozenStat
from dcn_jax.weights import init_from
from tests.support.tiny_detector import filled, make_backbone, tiny_backbone

GOLDEN = Path(__file__).parent.parent / "golden" / "resnet_bottleneck_1111.npz"


def count(state) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def test_equals_torchvision(tmp_path):
    with np.load(GOLDEN) as golden:
        weights = {
            key.removeprefix("state_dict/"): np.ascontiguousarray(golden[key])
            for key in golden.files
            if key.startswith("state_dict/")
        }
        x = jnp.asarray(golden["input"].transpose(0, 2, 3, 1))
        expected = [golden[f"stage{i}_output"] for i in range(1, 5)]
    path = tmp_path / "resnet.safetensors"
    save_file(weights, path)
    model = filled(lambda: ResNet((1, 1, 1, 1), width_per_group=8, rngs=nnx.Rngs(0)))
    init_from(model, path)
    for ours, theirs in zip(jax.jit(model)(x).values(), expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(ours).transpose(0, 3, 1, 2),
            theirs,
            rtol=0,
            atol=1e-5 * np.abs(theirs).max(),
        )


@pytest.mark.parametrize(
    ("make", "parameters"),
    # torchvision's resnet50, resnet101 and resnext50_32x4d without the classifier.
    [
        (resnet50, 25_557_032 - 2_049_000),
        (resnet101, 44_549_160 - 2_049_000),
        (
            lambda **kwargs: resnet50(groups=32, width_per_group=4, **kwargs),
            25_028_904 - 2_049_000,
        ),
    ],
)
def test_has_as_many_parameters_as_torchvision(make, parameters):
    model = nnx.eval_shape(lambda: make(norm="group_norm", rngs=nnx.Rngs(0)))
    assert count(nnx.state(model, nnx.Param)) == parameters
    assert model.strides == {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
    assert model.channels == {"c2": 256, "c3": 512, "c4": 1024, "c5": 2048}


def test_frozen_batch_norm_is_no_parameter():
    model = tiny_backbone(norm="frozen_bn")
    kinds = {p[-1] for p, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert kinds == {"kernel"}
    frozen = nnx.to_flat_state(nnx.state(model, FrozenStat))
    assert {p[-1] for p, _ in frozen} == {"scale", "bias", "mean", "var"}


def test_deformable_blocks_and_dilated_stages_are_where_they_were_asked_for():
    model = nnx.eval_shape(
        lambda: ResNet(
            (1, 2, 1, 2),
            stem_features=8,
            deform_blocks=(0, -1, 0, 1),
            modulated=False,
            offset_groups=2,
            output_stride=16,
            rngs=nnx.Rngs(0),
        )
    )
    assert model.strides == {"c2": 4, "c3": 8, "c4": 16, "c5": 16}
    for name, deformable, dilation in (
        ("layer1", (False,), 1),
        ("layer2", (True, True), 1),
        ("layer3", (False,), 1),
        ("layer4", (False, True), 2),
    ):
        for block, deforms in zip(getattr(model, name), deformable, strict=True):
            assert isinstance(block.conv2, DeformConv) == deforms
            assert block.conv2.kernel_dilation in (dilation, (dilation, dilation))
            if deforms:
                assert block.conv2.offset_conv.out_features == 2 * 18


@pytest.mark.parametrize("norm", ["frozen_bn", "group_norm"])
def test_padding_changes_nothing(norm):
    model = tiny_backbone(norm=norm, deform_blocks=(0, 0, -1, -1))
    for layer in (model.layer3, model.layer4):
        bias = layer[0].conv2.offset_conv.bias
        bias[...] = jax.random.normal(jax.random.key(1), bias.shape)
    x = jax.random.normal(jax.random.key(0), (2, 41, 50, 3))
    exact = jax.jit(model)(x)
    garbage = jnp.pad(x, ((0, 0), (0, 23), (0, 14), (0, 0)), constant_values=9.0)
    sizes = jnp.full((2, 2), jnp.asarray([41, 50], jnp.int32))
    for name, padded in jax.jit(model)(garbage, sizes).items():
        h, w = exact[name].shape[1:3]
        np.testing.assert_allclose(padded[:, :h, :w], exact[name], atol=2e-5)
        assert not padded[:, h:].any() and not padded[:, :, w:].any()


def test_an_image_without_pixels_is_finite():
    model = tiny_backbone()
    maps = jax.jit(model)(jnp.ones((1, 32, 32, 3)), jnp.zeros((1, 2), jnp.int32))
    assert all(jnp.isfinite(v).all() for v in maps.values())


@pytest.mark.parametrize("frozen_stages", [0, 2, 5])
def test_frozen_stages_are_not_differentiated(frozen_stages):
    model = tiny_backbone(frozen_stages=frozen_stages)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))

    def total(params):
        maps = nnx.merge(graph, params, rest)(x)
        return sum(jnp.sum(v**2) for v in maps.values())

    def convolutions(f):
        text = str(jax.make_jaxpr(f)(params))
        # A 1x1 convolution may be written as a matrix product.
        return text.count("= conv_general_dilated") + text.count("= dot_general")

    # A bottleneck with its shortcut has four; the stem's input needs no gradient.
    forward = convolutions(total)
    assert forward == 17
    backward = convolutions(jax.grad(total)) - forward
    assert backward == {0: 33, 2: 3 * 8 - 2, 5: 0}[frozen_stages]
    grads = jax.eval_shape(jax.grad(total), params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    names = model.frozen_names
    assert len(names) == {0: 0, 2: 3, 5: 6}[frozen_stages]
    assert all(hasattr(model, name) for name in names)


def test_reduced_precision_keeps_parameters():
    model = tiny_backbone(dtype=jnp.bfloat16, deform_blocks=(0, -1, -1, -1))
    maps = jax.jit(model)(jnp.ones((1, 32, 32, 3)), jnp.full((1, 2), 30, jnp.int32))
    assert {v.dtype for v in maps.values()} == {jnp.dtype(jnp.bfloat16)}
    params = nnx.state(model, nnx.Param)
    assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"depths": (1, 1, 1)}, "`depths` is (1, 1, 1); expected 4"),
        ({"deform_blocks": (1,)}, "`deform_blocks` is (1,); expected 4"),
        (
            {"deform_blocks": (0, 0, 0, 4)},
            "`deform_blocks` is (0, 0, 0, 4); exp",
        ),
        (
            {"deform_blocks": (0, 0, 0, -2)},
            "`deform_blocks` is -2; expected at",
        ),
        ({"output_stride": 8}, "`output_stride` is 8; expected 16 or 32"),
        ({"dilation": 0}, "`dilation` is 0; expected at least 1"),
        ({"first_dilation": 0}, "`first_dilation` is 0; expected at least 1"),
        ({"norm_epsilon": -1e-5}, "`norm_epsilon` is -1e-05; expected at least 0"),
        ({"norm": "batch"}, "`norm` is 'batch'; expected one of"),
        ({"frozen_stages": 6}, "`frozen_stages` is 6; expected 0 to 5"),
    ],
)
def test_wrong_arguments_are_named(argument, message):
    with pytest.raises(ValueError) as error:
        ResNet(**({"depths": (1, 1, 1, 1), "rngs": nnx.Rngs(0)} | argument))
    assert str(error.value).startswith(message)


def test_dilation_of_conv5():
    """One for the first block, as torchvision's, and one for the others."""

    def dilations(**options):
        body = nnx.eval_shape(lambda: make_backbone(depths=(1, 1, 1, 3), **options))
        return [block.conv2.kernel_dilation for block in body.layer4]

    assert dilations() == [2, 2, 2]
    assert dilations(dilation=6, first_dilation=6) == [6, 6, 6]
    assert dilations(dilation=4, first_dilation=1) == [1, 4, 4]
    assert dilations(dilation=4, output_stride=32) == [1, 1, 1]
