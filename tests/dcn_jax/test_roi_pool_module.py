"""The deformable RoI pooling layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dcn_jax.modules import DeformRoIPool, linen
from xla_ops import deform_roi_pool, roi_align

SCALE = 0.25


def feature_map(n=2, c=3, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((n, 8, 9, c)), dtype)


def boxes(n=2, dtype=jnp.float32):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 12, (n, 3, 2))
    return jnp.asarray(
        np.concatenate([corner, corner + rng.uniform(6, 20, (n, 3, 2))], axis=-1), dtype
    )


def make(modulated, **arguments):
    return DeformRoIPool(
        3,
        (2, 3),
        spatial_scale=SCALE,
        hidden_features=5,
        modulated=modulated,
        **arguments,
        rngs=nnx.Rngs(0),
    )


def with_random_branch(module):
    rng = np.random.default_rng(2)
    names = ("fc1", "fc2", "offset_fc") if module.modulated else ("offset_fc",)
    for name in names:
        for variable in (getattr(module, name).kernel, getattr(module, name).bias):
            value = variable.get_value()
            random = 0.5 * rng.standard_normal(value.shape)
            variable.set_value(jnp.asarray(random, value.dtype))
    return module


@pytest.mark.parametrize("modulated", [True, False])
def test_starts_as_aligned_pooling(modulated):
    x, rois = feature_map(), boxes()
    aligned = roi_align(x, rois, output_size=(2, 3), spatial_scale=SCALE)
    pooled = make(modulated)(x, rois)
    factor = 0.5 if modulated else 1
    np.testing.assert_allclose(pooled, factor * aligned, atol=1e-5)


@pytest.mark.parametrize("modulated", [True, False])
def test_order_of_the_branchs_outputs(modulated):
    x, rois = feature_map(), boxes()
    layer = with_random_branch(make(modulated))
    pool = dict(output_size=(2, 3), spatial_scale=SCALE)
    plain = deform_roi_pool(x, rois, **pool)
    sampling = layer.branch(plain)
    np.testing.assert_allclose(
        layer(x, rois), deform_roi_pool(x, rois, *sampling, **pool), atol=1e-5
    )
    offset, mask = sampling
    y = np.asarray(plain).reshape(2, 3, -1)
    if modulated:
        y = jax.nn.relu(layer.fc2(jax.nn.relu(layer.fc1(jnp.asarray(y)))))
    y = np.asarray(layer.offset_fc(jnp.asarray(y)))
    assert y.shape[-1] == (18 if modulated else 12)
    np.testing.assert_allclose(offset, y[..., :12].reshape(2, 3, 2, 3, 2), atol=1e-5)
    if modulated:
        logits = y[..., 12:].reshape(2, 3, 2, 3)
        np.testing.assert_allclose(mask, 1 / (1 + np.exp(-logits)), atol=1e-5)
    else:
        assert mask is None


def test_a_pyramid_shares_the_branch():
    x, rois = feature_map(), boxes()
    one = with_random_branch(make(True))
    levels = jnp.asarray([[0, 1, 0], [1, 1, 0]])
    pyramid = with_random_branch(
        DeformRoIPool(
            3, (2, 3), spatial_scale=(SCALE, SCALE), hidden_features=5, rngs=nnx.Rngs(0)
        )
    )
    both = pyramid([x, 2 * x], rois, levels=levels)
    first, second = one(x, rois), one(2 * x, rois)
    expected = np.where(np.asarray(levels)[..., None, None, None] == 0, first, second)
    np.testing.assert_allclose(both, expected, atol=1e-5)


def test_padding_of_the_map_does_not_matter():
    x, rois = feature_map(), boxes()
    layer = with_random_branch(make(True))
    padded = jnp.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=9.0)
    sizes = jnp.asarray([[8, 9], [8, 9]])
    np.testing.assert_allclose(
        layer(padded, rois, map_sizes=sizes), layer(x, rois), atol=1e-5
    )


@pytest.mark.parametrize("modulated", [True, False])
def test_gradients_of_all_parameters(x64, modulated):
    layer = with_random_branch(make(modulated, param_dtype=jnp.float64))
    x, rois = feature_map(dtype=jnp.float64), boxes(dtype=jnp.float64)
    graph, state = nnx.split(layer)

    @jax.jit
    def loss(state, x):
        y = nnx.merge(graph, state)(x, rois)
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(y * weights)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, x)
    point = jax.tree.map(np.asarray, (state, x))
    step = 1e-6
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
    layer = with_random_branch(make(True, dtype=jnp.bfloat16))
    x = feature_map(dtype=jnp.bfloat16)
    assert layer.fc1.kernel[...].dtype == jnp.float32
    y = layer(x, boxes())
    assert y.dtype == jnp.bfloat16
    assert all(v.dtype == jnp.float32 for v in layer.branch(y))


@pytest.mark.parametrize("pyramid", [True, False])
def test_the_type_of_the_computation_is_that_of_the_result(pyramid):
    scales = (SCALE, SCALE)
    layer = DeformRoIPool(
        3, 2, spatial_scale=scales if pyramid else SCALE, hidden_features=5,
        dtype=jnp.bfloat16, rngs=nnx.Rngs(0),
    )  # fmt: skip
    twin = linen.DeformRoIPool(
        2, layer.spatial_scale, hidden_features=5, dtype=jnp.bfloat16
    )
    x = feature_map()
    rest = (boxes(), None, jnp.zeros((2, 3), int)) if pyramid else (boxes(),)
    features = [x, x] if pyramid else x
    y = jax.eval_shape(layer, features, *rest)
    assert y.dtype == jnp.bfloat16
    init = functools.partial(twin.init_with_output, jax.random.key(0))
    assert jax.eval_shape(init, features, *rest)[0].dtype == jnp.bfloat16


def test_wide_maps_and_rois_in_a_narrow_computation(x64):
    layer = make(True, dtype=jnp.float32)
    y = jax.eval_shape(layer, feature_map(dtype=jnp.float64), boxes(dtype=jnp.float64))
    assert y.dtype == jnp.float32


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(("images", "rois"), [(2, 0), (0, 3), (0, 0)])
def test_no_rois_or_no_images(images, rois, modulated):
    x, none = jnp.ones((images, 8, 9, 3)), jnp.ones((images, rois, 4))
    layer = make(modulated)
    y, gradient = nnx.value_and_grad(lambda layer: layer(x, none).sum())(layer)
    assert layer(x, none).shape == y_shape(images, rois)
    assert y == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    twin = linen.DeformRoIPool((2, 3), SCALE, hidden_features=5, modulated=modulated)
    init = functools.partial(twin.init_with_output, jax.random.key(0))
    assert jax.eval_shape(init, x, none)[0].shape == y_shape(images, rois)


def y_shape(images, rois):
    return (images, rois, 2, 3, 3)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch_needs_one_sum_of_gradients(axis_type):
    layer = with_random_branch(make(True))
    graph, state = nnx.split(layer)

    def gradient(state, x, rois):
        return jax.grad(lambda s: jnp.mean(nnx.merge(graph, s)(x, rois) ** 2))(state)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        data = jax.device_put(
            (feature_map(8), boxes(8)), NamedSharding(mesh, P("data"))
        )
        state = jax.device_put(state, NamedSharding(mesh, P()))
        text = jax.jit(gradient).lower(state, *data).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
