"""Sampling locations against those computed by hand, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain import distinct_points, sampling_locations
from dcn_jax.modules import DeformConv
from xla_ops import deform_conv2d


def random_array(*shape, seed=0, scale=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.standard_normal(shape), dtype)


class Stack(nnx.Module):
    """Layers with a tanh after each."""

    def __init__(self, *layers):
        self.layers = nnx.List(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


def regular(count, **kwargs):
    rngs = nnx.Rngs(0)
    return Stack(*(nnx.Conv(2, 2, (3, 3), rngs=rngs, **kwargs) for _ in range(count)))


def deformed(layer, seed=0, scale=0.3):
    """The layer with a branch that says something."""
    for seed_, name in enumerate(("kernel", "bias"), start=seed):
        variable = getattr(layer.offset_conv, name)
        value = random_array(*variable.shape, seed=seed_, scale=scale)
        variable.set_value(value.astype(variable[...].dtype))
    return layer


def call(model, x):
    return model(x)


def locate(model, image, nodes, **kwargs):
    """`sampling_locations` as one program; eager, every operation is compiled."""
    find = jax.jit(lambda m, x: sampling_locations(m, call, x, nodes, **kwargs))
    return jax.device_get(find(model, image))


def test_one_deformable_layer_reads_where_it_is_computed_by_hand():
    layer = deformed(
        DeformConv(
            2, 4, (3, 2), strides=2, padding=1, offset_groups=2, rngs=nnx.Rngs(0)
        )
    )
    image = random_array(6, 7, 2)
    found = locate(layer, image, [(1, 2), (0, 3)], layers=1)
    offset, mask = jax.device_get(
        jax.jit(lambda m, x: m.sampling(x))(layer, image[None])
    )
    offset, mask = offset[0], mask[0]
    kernel = np.asarray(layer.kernel[...])
    assert found.position.shape == (2, 12, 2)
    for k, (p, q) in enumerate([(1, 2), (0, 3)]):
        for point, (tap,) in enumerate(np.asarray(found.taps)):
            g, rs = divmod(int(tap), 6)
            still = np.array([p * 2 - 1 + rs // 2, q * 2 - 1 + rs % 2])
            place = still + offset[p, q, g, rs]
            np.testing.assert_allclose(found.position[k, point], place, atol=1e-6)
            inside = (place >= 0).all() and place[0] <= 5 and place[1] <= 6
            assert found.inside[k, point] == inside
            on_map = np.clip(np.minimum(place + 1, np.array([6, 7]) - place), 0, 1)
            norm = np.linalg.norm(kernel[rs // 2, rs % 2, g])
            weight = mask[p, q, g, rs] * norm * on_map.prod()
            np.testing.assert_allclose(found.weight[k, point], weight, rtol=1e-5)
    assert not found.inside.all()
    assert found.map_size.tolist() == [6, 7]


@pytest.mark.parametrize("dilation", [1, 2])
def test_three_regular_layers_read_49_points(dilation):
    model = regular(3, kernel_dilation=dilation)
    for layer in model.layers:
        layer.kernel.set_value(jnp.full_like(layer.kernel[...], 0.5))  # norm 1
    found = locate(model, jnp.ones((16, 16, 2)), [(8, 7)])
    assert found.position.shape == (1, 729, 2)
    points = distinct_points(found.position[0], found.weight[0])
    ones = np.ones(3)
    line = np.convolve(np.convolve(ones, ones), ones)
    counts = np.outer(line, line).reshape(-1)
    reach = dilation * np.arange(-3, 4)
    expected = np.stack(np.meshgrid(8 + reach, 7 + reach, indexing="ij"), -1)
    np.testing.assert_array_equal(points.position, expected.reshape(49, 2))
    np.testing.assert_array_equal(points.count, counts)
    np.testing.assert_allclose(points.weight, counts, rtol=1e-6)


def test_points_of_stacked_layers_follow_interpolated_offsets_and_strides():
    """Offsets that are linear in the position, which interpolation reproduces."""

    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.below = DeformConv(1, 1, 3, modulated=False, rngs=rngs)
            self.between = nnx.Conv(1, 1, (1, 1), strides=2, rngs=rngs)
            self.above = DeformConv(1, 1, 3, modulated=False, rngs=rngs)

        def __call__(self, x):
            return self.above(self.between(self.below(x)))

    model = Model()
    model.above.offset_conv.bias.set_value(jnp.full(18, 0.25))
    # The branch of the lower layer reads the place itself out of the image's channel.
    kernel = jnp.zeros((3, 3, 1, 18)).at[1, 1].set(0.5)
    model.below.offset_conv.kernel.set_value(kernel)
    ramp = jnp.arange(16.0)[:, None, None] + jnp.zeros((16, 16, 1))
    found = locate(model, ramp, [(4, 3)], layers=2)
    positions = np.asarray(found.position[0]).reshape(9, 9, 2)
    for above in range(9):
        upper = np.array([4, 3]) + [above // 3 - 1, above % 3 - 1] + 0.25
        for below in range(9):
            step = [below // 3 - 1, below % 3 - 1]
            expected = 2 * upper + step + 0.5 * 2 * upper[0]
            np.testing.assert_allclose(positions[above, below], expected, atol=1e-5)


def test_points_outside_are_kept_and_weigh_nothing():
    found = locate(regular(3), jnp.ones((8, 8, 2)), [(0, 4)])
    assert found.position.shape[1] == 729
    above = np.asarray(found.position[0, :, 0]) < 0
    assert above.any()
    assert not np.asarray(found.inside[0])[above].any()
    assert not np.asarray(found.weight[0])[above].any()
    # What lies below a point outside is marked too, wherever it is.
    returned = ~np.asarray(found.inside[0]) & ~above
    assert returned.any() and not np.asarray(found.weight[0])[returned].any()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["deformable", "regular"])
def test_gradients_by_locations_equal_finite_differences(kind):
    rngs, double = nnx.Rngs(0), dict(dtype=np.float64, param_dtype=np.float64)
    image, node = random_array(5, 6, 2, dtype=np.float64), (2, 1)
    if kind == "deformable":
        lower = deformed(DeformConv(2, 4, 3, rngs=rngs, **double))
        offset, mask = lower.sampling(image[None])
    else:
        lower = nnx.Conv(2, 4, (3, 3), rngs=rngs, **double)
        # Beside the kink that bilinear values have at whole places: to its right.
        offset, mask = jnp.zeros((1, 5, 6, 1, 9, 2)) + 1e-7, None
    upper = nnx.Conv(4, 3, (3, 3), rngs=rngs, **double)
    model = Stack(lower, upper)

    def norm(offset):
        y = deform_conv2d(image[None], offset, lower.kernel[...], mask, lower.bias[...])
        return jnp.linalg.norm(jnp.tanh(upper(jnp.tanh(y)))[0, node[0], node[1]])

    # The lower layer alone, at the node's own place.
    one = locate(model, image, [node], layers=["layers.0"], gradient=True)
    step = 1e-7
    moves = step * np.eye(18).reshape(18, 9, 2)
    moved = jnp.tile(offset[None], (19, 1, 1, 1, 1, 1, 1))
    moved = moved.at[1:, 0, node[0], node[1], 0].add(moves)
    norms = jax.jit(jax.vmap(norm))(moved)
    slopes = (norms[1:] - norms[0]) / step
    np.testing.assert_allclose(one.gradient[0].reshape(18), slopes, atol=1e-5)
    assert np.abs(slopes).max() > 1e-2
    # Of both layers: all samples that the node depends on, each counted once.
    both = locate(model, image, [node], layers=2, gradient=True)
    assert both.gradient.shape == (1, 81, 2)
    total = jax.jit(jax.grad(norm))(offset).sum((0, 1, 2, 3, 4))
    np.testing.assert_allclose(both.gradient[0].sum(0), total, rtol=1e-5, atol=1e-6)


def test_nodes_are_one_program_and_outputs_keep_their_bits():
    model = Stack(*(deformed(DeformConv(2, 2, 3, rngs=nnx.Rngs(0))) for _ in range(2)))
    image, nodes = random_array(6, 6, 2), jnp.asarray([(1, 2), (4, 4)])
    state = nnx.state(model)

    @jax.jit
    def find(model, image, nodes):
        outputs = []

        def watched(model, x):
            outputs.append(model(x))
            return outputs[-1]

        found = sampling_locations(
            model, watched, image, nodes, layers=2, gradient=True
        )
        return found, outputs[0], model(image[None])

    both, watched, own = find(model, image, nodes)
    np.testing.assert_array_equal(watched, own)
    assert jax.tree.structure(nnx.state(model)) == jax.tree.structure(state)
    turned, _, _ = find(model, image, nodes[::-1])
    for name in ("position", "weight", "gradient"):
        one, other = getattr(both, name), getattr(turned, name)[::-1]
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert np.abs(both.gradient).max() > 1e-3


def test_a_layer_that_runs_on_several_images_is_refused():
    layer = DeformConv(2, 4, (3, 3), rngs=nnx.Rngs(0))

    def of_crops(model, x):
        return model(jnp.concatenate([x, -x]))[:1]

    with pytest.raises(ValueError, match="runs on 2 images; expected one"):
        sampling_locations(layer, of_crops, jnp.zeros((5, 5, 2)), [(0, 0)], layers=1)


def test_the_first_release_s_border_ends_where_the_image_does():
    layer = deformed(
        DeformConv(1, 1, 3, border="v1", modulated=False, rngs=nnx.Rngs(0)), scale=0.8
    )
    sizes = jnp.asarray([[4, 5]])
    # What lies behind that is not zero, and must not count.
    image, nodes = jnp.ones((6, 7, 1)), [(3, 4), (1, 3)]
    find = jax.jit(
        lambda m, x: (
            sampling_locations(
                m, lambda m, x: m(x, map_sizes=sizes), x, nodes, layers=1
            ),
            m.sampling(x[None])[0],
        )
    )
    found, offset = jax.device_get(find(layer, image))

    def response(factors):
        y = deform_conv2d(
            *(image[None], offset, layer.kernel[...]),
            jnp.broadcast_to(factors, (1, 6, 7, 1, 9)),
            border="v1",
            map_sizes=sizes,
        )
        return jnp.stack([y[0, p, q, 0] for p, q in nodes])

    # One tap after the other counts a little more.
    step = 0.25
    factors = 1 + step * jnp.concatenate([jnp.zeros((1, 9)), jnp.eye(9)])
    responses = jax.jit(jax.vmap(response))(factors)
    slopes = jnp.abs(responses[1:] - responses[:1]).T / step
    np.testing.assert_allclose(found.weight, slopes, rtol=1e-4, atol=1e-6)
    # Some read the last pixel wholly from behind it, others nothing.
    last = np.array([3, 4])
    behind = (found.position > last).any(-1)
    wholly = (
        behind & (found.position >= 0).all(-1) & (found.position < last + 1).all(-1)
    )
    assert wholly.any() and (found.weight[wholly] > 0).all()
    assert (found.weight == 0).any() and not found.inside[behind].any()
