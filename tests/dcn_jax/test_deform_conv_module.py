"""The deformable convolution layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dcn_jax.explain import offset_health
from dcn_jax.modules import DeformConv, offset_branch
from dcn_jax.modules.deform_conv import Samples
from xla_ops import deform_conv2d


def random_input(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def with_random_branch(module):
    """The module with offsets and masks that are not zero."""
    rng = np.random.default_rng(1)
    for variable in (module.offset_conv.kernel, module.offset_conv.bias):
        value = variable.get_value()
        random = 0.3 * rng.standard_normal(value.shape)
        variable.set_value(jnp.asarray(random, value.dtype))
    return module


WINDOWS = [
    dict(),
    dict(strides=2, padding=1),
    dict(padding="VALID", use_bias=False),
    dict(padding=((0, 2), (1, 1)), kernel_dilation=(1, 2), strides=(2, 1)),
    dict(feature_group_count=2, offset_groups=4),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("branch", [dict(modulated=False), dict(mask_scale=2)])
def test_starts_as_an_ordinary_convolution(window, branch):
    x = random_input(2, 7, 9, 4)
    layer = DeformConv(4, 6, (3, 2), **window, **branch, rngs=nnx.Rngs(0))
    window = {k: v for k, v in window.items() if k != "offset_groups"}
    ordinary = nnx.Conv(4, 6, (3, 2), **window, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(x), ordinary(x), atol=1e-5)


def test_a_mask_scale_of_1_starts_at_half():
    x = random_input(1, 5, 6, 4)
    half = DeformConv(4, 3, 3, rngs=nnx.Rngs(0))
    whole = DeformConv(4, 3, 3, mask_scale=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(2 * half(x), whole(x), atol=1e-5)


def test_order_of_the_branchs_channels():
    x = random_input(2, 5, 6, 4)
    layer = with_random_branch(
        DeformConv(4, 6, 3, offset_groups=2, mask_scale=2, rngs=nnx.Rngs(0))
    )
    channels = np.asarray(layer.offset_conv(x))
    sampling = layer.sampling(x)
    offset, mask = map(np.asarray, sampling)
    assert offset.shape == (2, 5, 6, 2, 9, 2)
    assert mask.shape == (2, 5, 6, 2, 9)
    for group, tap in ((0, 0), (0, 5), (1, 8)):
        np.testing.assert_array_equal(
            offset[..., group, tap, 0], channels[..., 18 * group + 2 * tap]
        )
        np.testing.assert_array_equal(
            offset[..., group, tap, 1], channels[..., 18 * group + 2 * tap + 1]
        )
        logit = channels[..., 36 + 9 * group + tap]
        np.testing.assert_allclose(
            mask[..., group, tap], 2 / (1 + np.exp(-logit)), rtol=1e-5
        )
    offset, mask = sampling
    expected = deform_conv2d(x, offset, layer.kernel[...], mask, layer.bias[...])
    np.testing.assert_array_equal(layer(x), expected)
    unmodulated = DeformConv(4, 6, 3, modulated=False, rngs=nnx.Rngs(0))
    assert unmodulated.offset_conv.bias[...].shape == (18,)
    assert unmodulated.sampling(x)[1] is None


def loss_of(layer, x):
    y = layer(x)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize("modulated", [True, False])
def test_gradients_of_all_parameters(x64, modulated):
    layer = with_random_branch(
        DeformConv(
            4,
            2,
            3,
            strides=2,
            offset_groups=2,
            modulated=modulated,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
        )
    )
    x = random_input(2, 5, 4, 4).astype(jnp.float64)
    graph, state = nnx.split(layer)
    loss = jax.jit(lambda state, x: loss_of(nnx.merge(graph, state), x))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, x)
    step = 1e-6
    point = jax.tree.map(np.asarray, (state, x))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = jax.tree.map(lambda v, r=rng: r.standard_normal(v.shape), point)
        ahead, behind = (
            jax.tree.map(lambda v, d, h=h: v + h * d, point, direction)
            for h in (step, -step)
        )
        numeric = (loss(*ahead) - loss(*behind)) / (2 * step)
        products = jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)
        exact = sum(jax.tree.leaves(products))
        np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-7)
    for leaf in jax.tree.leaves(gradient):
        assert np.any(leaf)


def test_half_precision_computes_offsets_in_float32():
    x = random_input(1, 6, 6, 4)
    layer = with_random_branch(
        DeformConv(4, 6, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    exact = with_random_branch(DeformConv(4, 6, 3, rngs=nnx.Rngs(0)))
    rounded = x.astype(jnp.bfloat16)
    assert layer.kernel[...].dtype == jnp.float32
    offset, mask = layer.sampling(rounded)
    assert offset.dtype == mask.dtype == jnp.float32
    y = layer(rounded)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        y.astype(jnp.float32), exact(rounded.astype(jnp.float32)), atol=0.1
    )
    gradient = jax.jit(jax.grad(layer_sum))(layer, rounded)
    assert gradient.offset_conv.kernel[...].dtype == jnp.float32


def layer_sum(layer, x):
    return jnp.sum(layer(x).astype(jnp.float32))


def test_hessian_vector_product_and_vmap():
    layer = with_random_branch(DeformConv(2, 2, 3, rngs=nnx.Rngs(0)))
    x = random_input(1, 4, 4, 2)
    graph, state = nnx.split(layer)

    def gradient(state):
        return jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(x) ** 2))(state)

    ones = jax.tree.map(jnp.ones_like, state)
    _, product = jax.jit(lambda s: jax.jvp(gradient, (s,), (ones,)))(state)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(product))
    mapped = jax.jit(jax.vmap(layer))(np.stack([x, x]))
    np.testing.assert_allclose(mapped[1], layer(x), atol=1e-5)


def chain():
    return nnx.Sequential(
        with_random_branch(DeformConv(3, 4, 3, mask_scale=2, rngs=nnx.Rngs(0))),
        with_random_branch(DeformConv(4, 4, 3, modulated=False, rngs=nnx.Rngs(1))),
    )


def test_health_is_the_mean_over_layers():
    model, x = chain(), random_input(2, 6, 7, 3)
    health = jax.jit(lambda m, x: offset_health(m, lambda m: m(x)))(model, x)
    first, second = model.layers
    assert not hasattr(first, "__captures__")
    offsets = (first.sampling(x)[0], second.sampling(first(x))[0])
    expected = np.mean([np.abs(offset).mean() for offset in offsets])
    np.testing.assert_allclose(health["offset/mean_abs"], expected, rtol=1e-5)
    assert set(health) == {"offset/mean_abs", "offset/outside", "offset/dead"}
    conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    assert offset_health(conv, lambda m: m(x)) == {}


def test_health_counts_samples():
    layer = DeformConv(1, 1, 1, mask_scale=2, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 4, 4, 1))
    # (dy, dx, mask logit), the same everywhere: rows 0..3 are sampled at -0.5..2.5.
    layer.offset_conv.bias.set_value(jnp.asarray([-0.5, 0.0, 0.0]))
    health = offset_health(layer, lambda m: m(x))
    assert health["offset/mean_abs"] == 0.25
    assert health["offset/outside"] == 0.25
    assert health["offset/dead"] == 0
    # Columns 0..3 at 2..5: two of four on or beyond the edge at 4.
    layer.offset_conv.bias.set_value(jnp.asarray([0.0, 2.0, 0.0]))
    health = offset_health(layer, lambda m: m(x))
    assert health["offset/outside"] == health["offset/dead"] == 0.5
    layer.offset_conv.bias.set_value(jnp.asarray([0.0, 0.0, -7.0]))
    health = offset_health(layer, lambda m: m(x))
    assert health["offset/outside"] == 0
    assert health["offset/dead"] == 1


def test_health_of_scanned_layers_counts_each():
    """Three layers under nnx.scan and one beside them weigh as four."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stack(rngs):
        return DeformConv(2, 2, 1, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self):
            self.stack = stack(nnx.Rngs(0))
            self.last = DeformConv(2, 2, 1, rngs=nnx.Rngs(1))

        def __call__(self, x):
            run = nnx.scan(
                lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )
            return self.last(run(x, self.stack))

    model = Model()
    bias = model.stack.offset_conv.bias
    # (dy, dx, mask logit) of the three; 0 for the last layer.
    bias.set_value(jnp.asarray([[1.0, 1, 0], [2.0, 2, 0], [5.0, 5, 0]]))
    health = offset_health(model, lambda m: m(jnp.ones((1, 4, 4, 2))))
    assert {name: value.shape for name, value in health.items()} == {
        f"offset/{name}": () for name in ("mean_abs", "outside", "dead")
    }
    assert health["offset/mean_abs"] == 2


def test_health_costs_nothing_unless_asked_for():
    layer, x = DeformConv(2, 2, 3, rngs=nnx.Rngs(0)), random_input(1, 4, 4, 2)
    jaxpr = str(jax.make_jaxpr(lambda m, x: m(x))(layer, x))
    assert "iota" not in jaxpr
    captured = nnx.capture(lambda m: m(x), Samples)
    assert "iota" in str(jax.make_jaxpr(captured)(nnx.clone(layer)))


def test_offsets_stay_within_their_bound():
    free = DeformConv(2, 2, 1, rngs=nnx.Rngs(0))
    bounded = DeformConv(2, 2, 1, max_offset=1.5, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 4, 4, 2))
    for dy, dx in ((0.01, -0.01), (3.0, -40.0)):
        for layer in (free, bounded):
            layer.offset_conv.bias.set_value(jnp.asarray([dy, dx, 0.0]))
        raw, bound = (layer.sampling(x)[0] for layer in (free, bounded))
        np.testing.assert_allclose(bound, 1.5 * np.tanh(raw / 1.5), rtol=1e-5)
        assert abs(bound).max() <= 1.5
    # Near 0 they are what they were, and learn at the same rate.
    np.testing.assert_allclose(jax.grad(lambda o: offset_branch.bound(o, 1.5))(0.0), 1)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch_needs_one_sum_of_gradients(axis_type):
    layer = with_random_branch(DeformConv(4, 4, 3, rngs=nnx.Rngs(0)))
    x = random_input(8, 5, 6, 4)
    graph, state = nnx.split(layer)

    def value_and_gradient(state, x):
        return jax.value_and_grad(lambda s: jnp.mean(nnx.merge(graph, s)(x) ** 2))(
            state
        )

    expected = jax.jit(value_and_gradient)(state, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, P("data")))
        state = jax.device_put(state, NamedSharding(mesh, P()))
        compiled = jax.jit(value_and_gradient).lower(state, x).compile()
        actual = compiled(state, x)
    text = compiled.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2)])
def test_an_explicit_mesh_that_splits_channels(sizes):
    """Of the images and of the weights: the branch reads whole ones, as the kernel."""
    layer = with_random_branch(DeformConv(4, 4, 3, rngs=nnx.Rngs(0)))
    x = random_input(2, 5, 6, 4)
    graph, state = nnx.split(layer)

    @jax.jit
    def gradient(state, x):
        return jax.grad(lambda s: jnp.mean(nnx.merge(graph, s)(x) ** 2))(state)

    expected = gradient(state, x)
    axes = ("data", "model")
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        channels = NamedSharding(mesh, P("data", None, None, "model"))
        whole = NamedSharding(mesh, P())
        state = jax.device_put(state, whole)
        kernel = layer.kernel[...]
        split = NamedSharding(mesh, P(None, None, "model", None))
        state["kernel"].set_value(jax.device_put(kernel, split))
        actual = gradient(state, jax.device_put(x, channels))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(feature_group_count=3), "`feature_group_count` is 3; expected a divisor"),
        (dict(offset_groups=3), "`offset_groups` is 3; expected a divisor of `in_f"),
        (dict(offset_groups=0), "`offset_groups` is 0"),
        (dict(mask_scale=3), "`mask_scale` is 3; expected 1 or 2"),
        (dict(strides=(1, 1, 1)), r"`strides` is \(1, 1, 1\); expected an integer or"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformConv(4, 8, 3, **arguments, rngs=nnx.Rngs(0))
