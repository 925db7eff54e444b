"""Initialisation of a ResNet from files with torchvision's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from torch_files import write_pth

from dcn_jax.backbones.resnet import ResNet
from dcn_jax.weights import init_from


def small_resnet(norm="frozen_bn"):
    abstract = nnx.eval_shape(
        lambda: ResNet(
            (2, 1, 1, 1),
            stem_features=4,
            groups=2,
            norm=norm,
            deform_stages=(False, False, False, True),
            rngs=nnx.Rngs(0),
        )
    )
    # Zeros, which need no compilation for every shape.
    graph, state = nnx.split(abstract)
    return nnx.merge(
        graph, jax.tree.map(lambda v: jnp.asarray(np.zeros(v.shape, v.dtype)), state)
    )


def torchvision_state_dict():
    """Random tensors in the shapes of torchvision's ResNet of this size."""
    rng = np.random.default_rng(0)

    def random(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    state = {}

    def add(conv, norm, *shape):
        state[f"{conv}.weight"] = random(*shape)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{name}"] = random(shape[0])
        state[f"{norm}.num_batches_tracked"] = np.asarray(7)

    add("conv1", "bn1", 4, 3, 7, 7)
    channels = 4
    for layer, blocks in enumerate((2, 1, 1, 1), start=1):
        planes = 4 * 2 ** (layer - 1)
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            add(f"{at}.conv1", f"{at}.bn1", 2 * planes, channels, 1, 1)
            add(f"{at}.conv2", f"{at}.bn2", 2 * planes, planes, 3, 3)
            add(f"{at}.conv3", f"{at}.bn3", 4 * planes, 2 * planes, 1, 1)
            if block == 0:
                down = f"{at}.downsample"
                add(f"{down}.0", f"{down}.1", 4 * planes, channels, 1, 1)
            channels = 4 * planes
    state["fc.weight"], state["fc.bias"] = random(5, channels), random(5)
    return state


STATE = torchvision_state_dict()


class Detector(nnx.Module):
    """Something with a backbone."""

    def __init__(self):
        self.backbone = small_resnet()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("model", [small_resnet, Detector])
def test_every_tensor_finds_its_place(tmp_path, suffix, model):
    path = tmp_path / f"r.{suffix}"
    if suffix == "pth":
        write_pth(path, STATE)
    else:
        save_file(STATE, path)
    model = model()
    report = init_from(model, path)
    backbone = getattr(model, "backbone", model)

    assert set(report.unused) == {
        name for name in STATE if "num_batches" in name or name.startswith("fc.")
    }
    assert set(report.loaded) == set(STATE) - set(report.unused)
    assert report.kept == (
        "layer4.0.conv2.offset_conv.bias",
        "layer4.0.conv2.offset_conv.kernel",
    )
    block = backbone.layer4[0]
    np.testing.assert_array_equal(
        block.conv2.kernel[...], STATE["layer4.0.conv2.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        block.downsample_norm.var[...], STATE["layer4.0.downsample.1.running_var"]
    )
    np.testing.assert_array_equal(
        backbone.layer1[1].norm3.scale[...], STATE["layer1.1.bn3.weight"]
    )
    np.testing.assert_array_equal(backbone.norm1.mean[...], STATE["bn1.running_mean"])
    assert not block.conv2.offset_conv.kernel[...].any()


def test_types_and_places_are_the_modules(tmp_path):
    path = tmp_path / "r.pth"
    write_pth(path, {k: v.astype(np.float64) for k, v in STATE.items()})
    model = small_resnet()
    mesh = jax.make_mesh((8,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.tree.map(
        lambda v: jnp.asarray(np.zeros(v.shape, jnp.bfloat16)), nnx.state(model)
    )
    nnx.update(model, jax.device_put(state, everywhere))
    init_from(model, path)
    kernel = model.conv1.kernel[...]
    assert kernel.dtype == jnp.bfloat16
    assert kernel.sharding == everywhere


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer3.0.bn2.running_mean": None},
            r"has no 'layer3\.0\.bn2\.running_mean';",
        ),
        (
            {"conv1.weight": None, "bn1.bias": None},
            r"has no 'conv1\.weight' \(and 1 more\)",
        ),
        (
            {"layer1.0.conv2.weight": np.ones((8, 8, 3, 3), np.float32)},
            r"'layer1\.0\.conv2\.weight' has shape \(8, 8, 3, 3\) in 'r\.pth'; "
            r"expected \(8, 4, 3, 3\)",
        ),
        ({"bn1.bias": np.ones((4, 1), np.float32)}, r"'bn1\.bias' has shape \(4, 1\)"),
        ({"bn1.bias": np.ones(4, np.int64)}, r"'bn1\.bias' has dtype int64"),
        ({"layer1.2.conv1.weight": np.ones(1)}, r"has 'layer1\.2\.conv1\.weight'"),
    ],
)
def test_another_networks_weights_are_refused(tmp_path, change, message):
    state = {k: v for k, v in (STATE | change).items() if v is not None}
    path = tmp_path / "r.pth"
    write_pth(path, state)
    model = small_resnet()
    before = nnx.to_pure_dict(nnx.state(model))
    with pytest.raises(ValueError, match=message):
        init_from(model, path)
    after = nnx.to_pure_dict(nnx.state(model))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`module` is Conv; expected a ResNet"):
        init_from(nnx.Conv(1, 1, (1, 1), rngs=nnx.Rngs(0)), tmp_path / "r.pth")
    with pytest.raises(ValueError, match="`module` has norm 'group_norm'"):
        init_from(small_resnet("group_norm"), tmp_path / "r.pth")
