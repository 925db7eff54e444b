"""Initialisation of a ResNet from files with torchvision's names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dcn_jax.backbones.resnet import ResNet
from dcn_jax.weights import init_from
from tests.support.torch_files import write_pth


@functools.cache
def abstract_resnet(norm):
    abstract = nnx.eval_shape(
        lambda: ResNet(
            (2, 1, 1, 1),
            stem_features=4,
            groups=2,
            norm=norm,
            deform_blocks=(0, 0, 0, -1),
            rngs=nnx.Rngs(0),
        )
    )
    return nnx.split(abstract)


def small_resnet(norm="frozen_bn"):
    # Zeros, which need no compilation for every shape.
    graph, state = abstract_resnet(norm)
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


def with_prefix(prefix, state=STATE):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        *(("backbone.", "head."), ("model.", ""), ("module.", ""), ("encoder.", "fc.")),
        *(("backbone.body.", "roi_heads."), ("module.encoder_q.", "module.head.")),
    ],
)
def test_a_part_of_a_model_is_found_by_its_prefix(tmp_path, prefix, others):
    state = with_prefix(prefix)
    if others:
        # Names that the ResNet has too, but not all of them.
        few = {"conv1.weight": np.ones(2), "layer1.0.conv1.weight": np.ones(1)}
        state |= with_prefix(others, few)
    path = tmp_path / "r.pth"
    write_pth(path, state)
    model = small_resnet()
    report = init_from(model, path)
    np.testing.assert_array_equal(
        model.layer1[1].norm3.scale[...], STATE["layer1.1.bn3.weight"]
    )
    prefix = prefix.removeprefix("module.")
    assert prefix + "layer1.1.bn3.weight" in report.loaded
    assert {name.rpartition(".")[2] for name in report.loaded} == {
        *("weight", "bias", "running_mean", "running_var")
    }
    assert len(report.loaded) + len(report.unused) == len(state)


def test_whole_names_come_before_those_with_a_prefix(tmp_path):
    path = tmp_path / "r.pth"
    average = {name: np.asarray(value + 1) for name, value in STATE.items()}
    write_pth(path, with_prefix("average.", average) | STATE)
    model = small_resnet()
    init_from(model, path)
    np.testing.assert_array_equal(model.norm1.mean[...], STATE["bn1.running_mean"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            with_prefix("student.") | with_prefix("teacher."),
            "has a ResNet under 'student.' and another under 'teacher.'; expected one",
        ),
        (
            {k: v for k, v in with_prefix("body.").items() if "layer2.0.bn1" not in k},
            r"has no 'body\.layer2\.0\.bn1\.bias' \(and 3 more\); .*"
            r"names begin with 'body\.'",
        ),
        (
            with_prefix("body.") | {"body.layer3.1.conv1.weight": np.ones(1)},
            r"has 'body\.layer3\.1\.conv1\.weight', for which the module has no place",
        ),
        (
            with_prefix("backbone.bottom_up.", {"res2.0.conv1.weight": np.ones(1)}),
            r"has no 'conv1\.weight' .*names begin with 'backbone\.bottom_up\.res2",
        ),
        (
            with_prefix("body.") | {"body.bn1.bias": np.ones(5, np.float32)},
            r"'body\.bn1\.bias' has shape \(5,\)",
        ),
    ],
)
def test_other_names_with_a_prefix_are_refused(tmp_path, state, message):
    path = tmp_path / "r.pth"
    write_pth(path, state)
    with pytest.raises(ValueError, match=message):
        init_from(small_resnet(), path)


def test_the_names_in_a_message_are_bounded_and_printable(tmp_path):
    path = tmp_path / "r.pth"
    name = "layer4.9." + "\x1b[31m" * 10**6
    write_pth(path, STATE | {name: np.ones(1)})
    with pytest.raises(ValueError, match="has no place") as error:
        init_from(small_resnet(), path)
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


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
    path = tmp_path / "r.pth"
    write_pth(path, {"conv1.weight": np.zeros((1, 1, 1, 1), np.float32)})
    with pytest.raises(ValueError, match="`module` has norm 'group_norm'"):
        init_from(small_resnet("group_norm"), path)
