"""Where deform_conv2d samples, by itself and against what the operator reads."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xla_ops import deform_conv2d, sampling_positions

# Without the type checks of the tests, as a user calls it.
unchecked = inspect.unwrap(sampling_positions)

LAYERS = [
    dict(kernel_size=(3, 3)),
    dict(kernel_size=(3, 2), strides=(2, 3), padding=((1, 0), (2, 1))),
    dict(kernel_size=(2, 3), strides=2, padding="SAME", kernel_dilation=(2, 1)),
    dict(kernel_size=(1, 1), padding="VALID"),
]
SIZE = (9, 11)


def output_size(kernel_size, **layer):
    """(P, Q), by the operator."""
    shapes = jax.eval_shape(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=np.broadcast_to(layer.get("strides", 1), 2),
            padding=layer.get("padding", "SAME"),
            rhs_dilation=np.broadcast_to(layer.get("kernel_dilation", 1), 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        jax.ShapeDtypeStruct((1, *SIZE, 1), jnp.float32),
        jax.ShapeDtypeStruct((*kernel_size, 1, 1), jnp.float32),
    )
    return shapes.shape[1:3]


def random_offset(layer, groups=2, scale=0.5, images=2):
    rows, columns = output_size(**layer)
    taps = layer["kernel_size"][0] * layer["kernel_size"][1]
    shape = (images, rows, columns, groups, taps, 2)
    offset = np.random.default_rng(0).uniform(-scale, scale, shape)
    return jnp.asarray(offset, jnp.float32)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_the_operator_samples_there(layer, implementation):
    """A map that holds its own coordinates, read tap by tap."""
    offset = random_offset(layer)
    images, _, _, groups, taps, _ = offset.shape
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, SIZE), indexing="ij"), axis=-1)
    x = jnp.tile(places.astype(jnp.float32)[None], (images, 1, 1, groups))
    # Tap t and channel c go to output t * 2G + c.
    outputs = taps * 2 * groups
    kernel = jnp.eye(outputs, dtype=jnp.float32).reshape(
        *layer["kernel_size"], 2 * groups, outputs
    )
    options = {name: layer[name] for name in layer if name != "kernel_size"}
    y = deform_conv2d(x, offset, kernel, implementation=implementation, **options)
    read = jnp.moveaxis(y.reshape(*y.shape[:3], taps, groups, 2), 3, 4)
    positions = sampling_positions(offset, input_size=SIZE, **layer)
    assert positions.shape == offset.shape
    last = jnp.asarray(SIZE, jnp.float32)[(None,) * 5] - 1
    inside = ((positions >= 0) & (positions <= last)).all(-1, keepdims=True)
    assert inside.mean() > 0.4
    np.testing.assert_allclose(
        jnp.where(inside, read, 0), jnp.where(inside, positions, 0), atol=1e-5
    )


def test_positions_in_numbers():
    offset = jnp.zeros((1, 2, 2, 1, 2, 2)).at[0, 1, 0, 0, 1].set(jnp.array([0.5, -2]))
    positions = sampling_positions(
        offset,
        input_size=(5, 6),
        kernel_size=(1, 2),
        strides=(4, 3),
        padding=((0, 0), (1, 0)),
        kernel_dilation=2,
    )
    np.testing.assert_array_equal(
        positions[0, :, :, 0],
        [
            [[[0, -1], [0, 1]], [[0, 2], [0, 4]]],
            [[[4, -1], [4.5, -1]], [[4, 2], [4, 4]]],
        ],
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_float32(dtype):
    """A place on a large map has more digits than the offset."""
    offset = jnp.full((1, 1, 3000, 1, 1, 2), 0.125, dtype)
    positions = sampling_positions(offset, input_size=(1, 3000), kernel_size=1)
    assert positions.dtype == jnp.float32
    assert positions[0, 0, 2999, 0, 0, 1] == 2999.125


def test_offsets_that_are_not_finite():
    offset = (
        jnp.zeros((1, 1, 2, 1, 1, 2))
        .at[0, 0, :, 0, 0, 1]
        .set(jnp.array([np.nan, np.inf]))
    )
    positions = sampling_positions(offset, input_size=(1, 2), kernel_size=1)
    np.testing.assert_array_equal(positions[0, 0, :, 0, 0], [[0, np.nan], [0, np.inf]])


def test_it_runs_under_jit_vmap_and_grad():
    layer = LAYERS[0]
    offset = random_offset(layer)

    def total(offset):
        return (sampling_positions(offset, input_size=SIZE, **layer) * 2).sum()

    mapped = jax.jit(jax.vmap(jax.grad(total)))(offset[:, None])
    np.testing.assert_array_equal(mapped, np.full((2, 1, *offset.shape[1:]), 2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(offset=3), TypeError, "`offset` is int; expected an array"),
        (dict(input_size=(9, 0)), ValueError, "`input_size` is 0; expected at least 1"),
        (dict(kernel_size="3"), TypeError, "`kernel_size` is '3'; expected an integer"),
        (dict(strides=0), ValueError, "`strides` is 0; expected at least 1"),
        (dict(padding="FULL"), ValueError, "`padding` is 'FULL'; expected"),
        (
            dict(kernel_size=2),
            ValueError,
            r"`offset` has shape \(2, 9, 11, 2, 9, 2\); expected \(N, 9, 11, G, 4, 2\) "
            r"= \(N, P, Q, G, R\*S, 2\) for `input_size` \(9, 11\) and `kernel_size` "
            r"\(2, 2\)",
        ),
    ],
)
def test_arguments_that_do_not_fit(change, error, message):
    arguments = dict(offset=random_offset(LAYERS[0]), input_size=SIZE, kernel_size=3)
    with pytest.raises(error, match=message):
        unchecked(**arguments | change)
