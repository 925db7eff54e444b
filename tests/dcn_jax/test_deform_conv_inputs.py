"""What a deformable convolution layer may be given beside one batch of maps."""

import inspect
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy import ndimage

from dcn_jax.explain import offset_health
from dcn_jax.modules import DeformConv, linen
from xla_ops import deform_conv2d, sampling_positions


def random_input(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def with_random_branch(module, scale=0.3):
    """The module with offsets and masks that are not zero."""
    rng = np.random.default_rng(1)
    for variable in (module.offset_conv.kernel, module.offset_conv.bias):
        value = variable.get_value()
        random = scale * rng.standard_normal(value.shape)
        variable.set_value(jnp.asarray(random, value.dtype))
    return module


def twin_of(layer, **arguments):
    """The Linen layer with the NNX layer's parameters, bound to them."""
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    return linen.DeformConv(layer.bias[...].shape[0], **arguments).bind(
        {"params": params}
    )


def test_any_axes_before_those_of_the_map():
    arguments = dict(kernel_size=3, strides=2, padding=1, offset_groups=2)
    layer = with_random_branch(
        DeformConv(4, 6, **arguments, offset_in_features=5, rngs=nnx.Rngs(0))
    )
    twin = twin_of(layer, **arguments)
    x, features = random_input(2, 3, 7, 6, 4), random_input(2, 3, 7, 6, 5)
    flow = random_input(2, 3, 4, 3, 2)

    @jax.jit
    def run(*given):
        def each(x, features, flow):
            one = layer(x, features, base_offset=flow)
            return one, twin(x, features, base_offset=flow)

        flat = [v.reshape(6, *v.shape[2:]) for v in given]
        return each(*given), each(*flat), each(*(v[0, 0] for v in given))

    many, flat, single = run(x, features, flow)
    expected = flat[0]
    assert expected.shape == (6, 4, 3, 6)
    for y in (*many, flat[1]):
        np.testing.assert_allclose(y.reshape(expected.shape), expected, atol=1e-5)
    for y in single:
        np.testing.assert_allclose(y, expected[0], atol=1e-5)


def test_a_base_offset_moves_all_taps_behind_the_bound():
    layer = with_random_branch(
        DeformConv(4, 6, 3, offset_groups=2, max_offset=0.5, rngs=nnx.Rngs(0))
    )
    x = random_input(2, 5, 6, 4)
    flow = 3 * random_input(2, 5, 6, 2)
    by_group = jnp.stack([flow, -flow], axis=-2)

    @jax.jit
    def run(x, flow, by_group):
        outcomes = []
        for base in (None, flow, by_group):
            offset, mask = layer.sampling(x, base)
            kernel, bias = layer.kernel[...], layer.bias[...]
            expected = deform_conv2d(x, offset, kernel, mask, bias)
            outcomes.append((offset, layer(x, base_offset=base), expected))
        return outcomes

    (free, *_), *moved = run(x, flow, by_group)
    assert abs(free).max() <= 0.5
    for (offset, y, expected), base in zip(
        moved, (np.stack([flow, flow], -2), by_group), strict=True
    ):
        np.testing.assert_allclose(
            offset - free, np.broadcast_to(base[..., None, :], free.shape), atol=1e-5
        )
        np.testing.assert_allclose(y, expected, atol=1e-6)


CONTINUED = [("CIRCULAR", "grid-wrap"), ("REFLECT", "mirror")]


def continued_conv(x, offset, mask, kernel, mode, pads):
    """The definition on an endless map, whose values SciPy knows."""
    size = kernel.shape[:2]
    position = sampling_positions(
        offset, input_size=x.shape[1:3], kernel_size=size, padding=pads
    )
    y, x_ = np.moveaxis(np.asarray(position)[..., 0, :, :], -1, 0)
    values = np.stack(
        [
            [
                ndimage.map_coordinates(plane, [y[n], x_[n]], order=1, mode=mode)
                for plane in np.moveaxis(np.asarray(x[n]), -1, 0)
            ]
            for n in range(len(x))
        ]
    )
    taps = np.asarray(kernel).reshape(-1, *kernel.shape[2:])
    return np.einsum("ncpqt,npqt,tck->npqk", values, np.asarray(mask)[..., 0, :], taps)


@pytest.mark.parametrize(("padding", "mode"), CONTINUED)
def test_maps_that_go_on_without_end(padding, mode):
    arguments = dict(kernel_size=(3, 2), padding=padding)
    layer = with_random_branch(
        DeformConv(3, 4, **arguments, rngs=nnx.Rngs(0)), scale=4.0
    )
    ordinary = nnx.Conv(3, 4, (3, 2), padding=padding, rngs=nnx.Rngs(0))
    plain = DeformConv(3, 4, **arguments, mask_scale=2, rngs=nnx.Rngs(0))
    twin = twin_of(layer, **arguments)
    x = random_input(2, 5, 4, 3)

    @jax.jit
    def run(x):
        health = [offset_health(model, lambda m: m(x)) for model in (layer, twin)]
        return layer(x), twin(x), layer.sampling(x), plain(x), ordinary(x), health

    y, twins, (offset, mask), start, expected, health = run(x)
    assert all(each["offset/outside"] == 0 for each in health)
    np.testing.assert_allclose(start, expected, atol=1e-5)
    assert abs(offset).max() > 12  # More than twice the map.
    kernel = layer.kernel[...]
    expected = continued_conv(x, offset, mask, kernel, mode, ((1, 1), (0, 1)))
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(twins, y, atol=1e-5)


@pytest.mark.parametrize(("padding", "mode"), CONTINUED)
def test_no_derivative_reads_behind_a_map_that_goes_on(padding, mode):
    """Of a map that is 1 everywhere it is 0, also next to the border."""
    del mode
    arguments = dict(padding=padding, kernel_dilation=2, strides=2)
    layer = DeformConv(1, 1, 3, **arguments, modulated=False, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 4, 5, 1))

    @jax.jit
    @jax.vmap
    def gradient(shift):
        def run(shift):
            base = jnp.broadcast_to(shift, (1, 2, 3, 2))
            return jnp.sum(layer(x, base_offset=base) ** 2)

        return jax.grad(run)(shift)

    shifts = jnp.asarray([0.0, 1e-9, -1e-9, 1e-6, -1e-6, 4.0, -5.0, 1e4])
    slopes = gradient(jnp.stack([shifts, -shifts], axis=-1))
    np.testing.assert_allclose(slopes, np.zeros((8, 2)), atol=1e-4)


def test_precision_and_implementation_reach_the_operator():
    arguments = dict(kernel_size=3, precision="high", implementation="reference")
    layer = DeformConv(2, 2, **arguments, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 4, 4, 2))
    for model in (layer, twin_of(layer, **arguments)):
        jaxpr = str(jax.make_jaxpr(lambda x, model=model: model(x))(x))
        assert "dcn_jax.deform_conv2d" not in jaxpr
        # Of the branch and of the layer, each with two operands.
        assert len(re.findall(r"\bHIGH\b", jaxpr)) >= 4
    plain = DeformConv(2, 2, 3, rngs=nnx.Rngs(0))
    assert "dcn_jax.deform_conv2d" in str(jax.make_jaxpr(lambda x: plain(x))(x))


def test_bad_inputs(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x = jnp.ones((2, 7, 6, 4))
    layer = DeformConv(4, 6, 3, offset_groups=2, rngs=nnx.Rngs(0))
    twin = twin_of(layer, kernel_size=3, offset_groups=2)
    for model in (layer, twin):
        with pytest.raises(ValueError, match="`x` has shape") as caught:
            model(jnp.moveaxis(x, -1, 1))
        names = {"jnp": jnp, "x": jnp.moveaxis(x, -1, 1)}
        exec(str(caught.value).split("; from torch's layout: ")[1], names)
        assert names["x"].shape == x.shape
        for wrong in (x[..., :3], x[0, 0]):
            with pytest.raises(ValueError, match="`x` has shape") as caught:
                model(wrong)
            assert "torch" not in str(caught.value)
        with pytest.raises(ValueError, match=r"expected \(2, 7, 6, channels\) beside"):
            model(x, x[:1])
        flow = jnp.broadcast_to(
            jnp.asarray([3.0, 5.0]).reshape(1, 2, 1, 1), (2, 2, 7, 6)
        )
        with pytest.raises(ValueError, match="`base_offset` has shape") as caught:
            model(x, base_offset=flow)
        names = {"jnp": jnp, "base_offset": flow}
        exec(str(caught.value).split("(dx, dy): ")[1], names)
        assert names["base_offset"].shape == (2, 7, 6, 2)
        assert names["base_offset"][0, 0, 0].tolist() == [5, 3]
        with pytest.raises(ValueError, match="`base_offset` has shape"):
            model(x, base_offset=x)
    with pytest.raises(ValueError, match="`offset_features` has shape"):
        layer(x, x[..., :2])


def test_linens_arguments_are_told():
    ours = set(inspect.signature(DeformConv.__init__).parameters)
    twins = set(inspect.signature(linen.DeformConv).parameters) - {"parent", "name"}
    nnxs = {"self", "in_features", "out_features", "offset_in_features", "rngs"}
    assert twins - {"features"} == ours - nnxs
    for name in twins:
        assert f"\n      {name}: " in linen.DeformConv.__doc__
    pool = set(inspect.signature(linen.DeformRoIPool).parameters) - {"parent", "name"}
    for name in pool:
        assert f"\n      {name}: " in linen.DeformRoIPool.__doc__


class Chain(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(x)
        x = linen.DeformConv(4, 3, mask_scale=2, name="first")(x)
        return linen.DeformConv(4, [3, 3], modulated=False, name="second")(x)


class Same(nnx.Module):
    def __init__(self, params):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(3, use_running_average=False, rngs=rngs)
        self.first = DeformConv(3, 4, 3, mask_scale=2, rngs=rngs)
        self.second = DeformConv(4, 4, 3, modulated=False, rngs=rngs)
        layers = {"BatchNorm_0": self.norm, "first": self.first, "second": self.second}
        for name, layer in layers.items():
            state = nnx.state(layer, nnx.Param)
            nnx.replace_by_pure_dict(state, params[name])
            nnx.update(layer, state)

    def __call__(self, x):
        return self.second(self.first(self.norm(x)))


def test_linens_sampling_and_health_are_nnxs():
    x = random_input(2, 6, 7, 3)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda v: jnp.asarray(0.3 * rng.standard_normal(v.shape), v.dtype),
        jax.eval_shape(Chain().init, jax.random.key(0), x),
    )
    other = Same(variables["params"])
    twin = linen.DeformConv(4, 3, mask_scale=2)

    @jax.jit
    def run(variables, x):
        health = [
            offset_health(model, lambda m: m(x))
            for model in (Chain().bind(variables), other)
        ]
        first = {"params": variables["params"]["first"]}
        sampled = twin.apply(first, x, method="sampling"), other.first.sampling(x)
        return health, sampled

    health, sampled = run(variables, x)
    assert set(health[0]) == {"offset/mean_abs", "offset/outside", "offset/dead"}
    assert health[0]["offset/mean_abs"] > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *health)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *sampled)


class Stack(nn.Module):
    kept: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        run = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes=dict.fromkeys(self.kept, 0),
            split_rngs={"params": True},
            length=3,
        )
        return run(linen.DeformConv(2, 2, name="layer"), x, None)[0]


def test_health_of_a_linen_model_answers_or_refuses():
    x = jnp.ones((1, 4, 4, 2))
    kept = Stack(("params", "intermediates"))
    shapes = jax.eval_shape(kept.init, jax.random.key(0), x)
    variables = {"params": jax.tree.map(jnp.zeros_like, shapes["params"])}
    # (dy, dx, mask logit) of each tap and layer.
    branch = variables["params"]["layer"]["offset_conv"]
    assert branch["bias"].shape == (3, 12)
    branch["bias"] = branch["bias"].at[1].set(3.0)
    health = jax.jit(lambda v: offset_health(kept.bind(v), lambda m: m(x)))(variables)
    assert health["offset/mean_abs"] == 1
    lost = Stack(("params",))
    with pytest.raises(ValueError, match="`module`: the layer layer leaves no record"):
        offset_health(lost.bind(variables), lambda m: m(x))
    with pytest.raises(ValueError, match="`module` is a Stack without variables"):
        offset_health(kept, lambda m: m(x))
    with pytest.raises(TypeError, match="`module` is dict; expected"):
        offset_health(variables, lambda m: m(x))
    other = nn.Conv(2, (3, 3))
    bound = other.bind(other.init(jax.random.key(0), x))
    assert offset_health(bound, lambda m: m(x)) == {}
