"""The border of DCNv1's first release, `border="v1"`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from dcn_jax.modules import DeformConv
from tests.support.comparison import relative_error
from xla_ops import deform_conv2d

BOTH = pytest.mark.parametrize("implementation", ["ffi", "reference"])
SIZE = (5, 6)
WINDOW = dict(strides=(2, 1), padding=((1, 1), (2, 0)), kernel_dilation=(1, 2))
OUTPUT = (3, 4)


def arguments(seed=0, batch=2, dtype=np.float32, scale=3.0):
    """x, offset, kernel and mask: two groups of channels, many samples outside."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *SIZE, 6))
    offset = rng.standard_normal((batch, *OUTPUT, 2, 9, 2)) * scale
    kernel = rng.standard_normal((3, 3, 6, 4))
    mask = rng.uniform(0, 1, (batch, *OUTPUT, 2, 9))
    return tuple(jnp.asarray(a, dtype) for a in (x, offset, kernel, mask))


def sample(channel, y, x):
    """Of one channel [H, W], as the first release reads it."""
    height, width = channel.shape
    if not (0 <= y < height and 0 <= x < width):
        return 0.0
    y, x = min(y, height - 1.0), min(x, width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    above = (1 - dx) * channel[top, left] + dx * channel[top, right]
    below = (1 - dx) * channel[bottom, left] + dx * channel[bottom, right]
    return (1 - dy) * above + dy * below


def by_hand(x, offset, kernel, mask):
    """One image, sample by sample."""
    y = np.zeros((*OUTPUT, kernel.shape[-1]))
    for p, q, tap in np.ndindex(*OUTPUT, 9):
        for c in range(x.shape[-1]):
            group = c // 3
            dy, dx = offset[p, q, group, tap]
            row = p * 2 - 1 + tap // 3 + dy
            column = q - 2 + tap % 3 * 2 + dx
            value = sample(x[..., c], row, column) * mask[p, q, group, tap]
            y[p, q] += value * kernel[tap // 3, tap % 3, c]
    return y


@BOTH
def test_it_reads_what_the_first_release_reads(implementation, x64):
    x, offset, kernel, mask = arguments(dtype=np.float64)
    # On pixels, on the last one, half a pixel behind it, at its end, before the first.
    offset = offset.at[0].set(jnp.round(offset[0] * 2) / 2)
    y = deform_conv2d(
        x, offset, kernel, mask, **WINDOW, border="v1", implementation=implementation
    )
    for image in range(2):
        each = (np.asarray(a[image]) for a in (x, offset))
        want = by_hand(*each, np.asarray(kernel), np.asarray(mask[image]))
        np.testing.assert_allclose(y[image], want, rtol=1e-12, atol=1e-12)
    zeros = deform_conv2d(x, offset, kernel, mask, **WINDOW)
    assert relative_error(zeros, y) > 0.1


@BOTH
def test_derivatives(implementation, x64):
    operands = arguments(seed=1, dtype=np.float64)

    @jax.jit
    def loss(*operands):
        y = deform_conv2d(
            *operands, **WINDOW, border="v1", implementation=implementation
        )
        return jnp.sin(y).sum()

    check_grads(loss, operands, 1, ["rev"], eps=1e-6, atol=1e-5, rtol=1e-5)


@BOTH
def test_a_sample_that_is_moved_to_the_last_pixel_has_no_derivative(implementation):
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    # Of a 1x1 kernel at every pixel, all to the same place.
    place = jnp.asarray([2.25, 3.5])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(3.0), jnp.arange(4.0), indexing="ij"), -1)
    offset = (place[None, None] - grid)[None, :, :, None, None]

    @jax.jit
    def run(x, offset):
        def convolve(x, offset):
            return deform_conv2d(
                x,
                offset,
                jnp.ones((1, 1, 1, 1)),
                border="v1",
                implementation=implementation,
            )

        y, pull_back = jax.vjp(convolve, x, offset)
        return y, *pull_back(jnp.ones_like(y))

    y, dx, doffset = run(x, offset)
    np.testing.assert_array_equal(y, np.full((1, 3, 4, 1), 11.0))
    assert not doffset.any()
    np.testing.assert_array_equal(dx.ravel(), [0] * 11 + [12])


@BOTH
def test_map_sizes_are_cropping(implementation):
    x, offset, kernel, mask = arguments(seed=2)
    sizes = jnp.asarray([[4, 3], SIZE])
    for image, (height, width) in enumerate(sizes.tolist()):
        x = x.at[image, height:].set(0).at[image, :, width:].set(0)
    convolve = functools.partial(
        deform_conv2d, **WINDOW, border="v1", implementation=implementation
    )
    y = convolve(x, offset, kernel, mask, map_sizes=sizes)
    window = WINDOW | dict(padding=((1, 1), (2, 0)))
    alone = deform_conv2d(
        x[:1, :4, :3],
        offset[:1, :2, :1],
        kernel,
        mask[:1, :2, :1],
        **window,
        border="v1",
        implementation=implementation,
    )
    np.testing.assert_allclose(y[:1, :2, :1], alone, rtol=1e-5, atol=1e-5)
    whole = convolve(x[1:], offset[1:], kernel, mask[1:])
    np.testing.assert_allclose(y[1:], whole, rtol=1e-5, atol=1e-5)


@BOTH
def test_nan_stays_and_infinity_is_outside(implementation):
    x = jnp.ones((1, 1, 3, 1))
    offset = np.zeros((1, 1, 3, 1, 1, 2), np.float32)
    offset[0, 0, :, 0, 0, 1] = [np.nan, np.inf, -np.inf]
    y = deform_conv2d(
        x, offset, jnp.ones((1, 1, 1, 1)), border="v1", implementation=implementation
    )
    np.testing.assert_array_equal(y.ravel(), [np.nan, 0, 0])


def test_the_layer_hands_it_on():
    from flax import nnx

    layer = DeformConv(2, 3, 3, border="v1", rngs=nnx.Rngs(0))
    other = DeformConv(2, 3, 3, rngs=nnx.Rngs(0))
    for each in (layer, other):
        each.offset_conv.bias[...] = jnp.full(27, 0.5)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 7, 2)), jnp.float32)
    sizes = jnp.asarray([[4, 5], [6, 7]])
    x = x.at[0, 4:].set(0).at[0, :, 5:].set(0)
    y = layer(x, map_sizes=sizes)
    assert relative_error(other(x, map_sizes=sizes), y) > 0.01
    # The branch sees zeros behind the map, as it does in a smaller one.
    np.testing.assert_allclose(y[0, :4, :5], layer(x[:1, :4, :5])[0], atol=1e-5)


@pytest.mark.devices(8)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_data_parallel(kind):
    operands = arguments(batch=8)
    sizes = jnp.asarray([SIZE] * 8)

    @jax.jit
    def run(x, offset, kernel, mask, sizes):
        def convolve(*operands):
            return deform_conv2d(*operands, **WINDOW, border="v1", map_sizes=sizes)

        y, pull_back = jax.vjp(convolve, x, offset, kernel, mask)
        return y, pull_back(y)

    want = run(*operands, sizes)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    placed = jax.device_put((*operands, sizes), (split, split, whole, split, split))
    with jax.set_mesh(mesh):
        executable = run.lower(*placed).compile()
        got = executable(*placed)
    assert not re.findall(r" (all-gather|all-to-all)(-start)?\(", executable.as_text())
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_bad_input_is_refused():
    x, offset, kernel, mask = arguments()
    call = functools.partial(deform_conv2d, x, offset, kernel, mask, **WINDOW)
    with pytest.raises(ValueError, match="`border` is 'edge'; expected one of"):
        call(border="edge")
    with pytest.raises(ValueError, match="`map_sizes` is given with `border` 'zeros'"):
        call(map_sizes=jnp.asarray([SIZE] * 2))
    with pytest.raises(ValueError, match="`map_sizes` has shape"):
        call(border="v1", map_sizes=jnp.asarray([SIZE] * 3))
