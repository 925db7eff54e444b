"""bfloat16 and float16 where a sum or a coordinate of that type would be wrong.

bfloat16 has 8 bits: a column past 256 has no fraction, and 256 + 1 is 256.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xla_ops import (
    deform_conv2d,
    deform_ps_roi_pool,
    deform_roi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)

HALF = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
BOTH = pytest.mark.parametrize("implementation", ["ffi", "reference"])
COLUMNS = 2110
MANY = 16384


def pull_back(function, cotangent, *arguments):
    """Output and gradients, compiled fast."""

    def run(cotangent, *arguments):
        output, gradients = jax.vjp(function, *arguments)
        return output, gradients(cotangent)

    return jax.jit(run)(cotangent, *arguments)


@HALF
@BOTH
@pytest.mark.parametrize("offset_dtype", ["float32", "half"])
@pytest.mark.parametrize("shift", [0.375, -0.375, 0.3])
def test_a_sample_is_as_exact_at_every_column(
    dtype, implementation, offset_dtype, shift
):
    """Between 0 and 1, in a row of them: the shift, or what it lacks to 1."""
    offset_dtype = dtype if offset_dtype == "half" else offset_dtype
    x = jnp.asarray(np.arange(COLUMNS) % 2, dtype)[None, None, :, None]
    offset = np.zeros((1, 1, COLUMNS, 1, 1, 2), np.float32)
    offset[..., 1] = shift
    offset = jnp.asarray(offset, offset_dtype)
    y, (dx, doffset) = pull_back(
        lambda x, offset: deform_conv2d(
            x, offset, jnp.ones((1, 1, 1, 1), dtype), implementation=implementation
        ),
        jnp.ones((1, 1, COLUMNS, 1), dtype),
        x,
        offset,
    )
    # The offset as it is stored: 0.3 has no exact form in half precision.
    stored = abs(float(offset[0, 0, 0, 0, 0, 1]))
    inner = slice(1, COLUMNS - 1)
    odd = np.arange(COLUMNS)[inner] % 2
    got = np.asarray(y, np.float32)[0, 0, inner, 0]
    assert got.shape[0] > 2100
    # Half a unit in the last place at most, for a result in [0.5, 1).
    rounding = 0 if abs(shift) == 0.375 else float(jnp.finfo(dtype).eps) / 4
    want = np.where(odd, 1 - stored, stored)
    assert np.abs(got - want).max() <= max(rounding, 1e-3)
    assert np.abs(want - np.where(odd, 1 - abs(shift), abs(shift))).max() < 2e-3
    # The slope between two pixels is 1, and each pixel counts 1 in sum.
    want = np.where(odd, -1, 1) * np.sign(shift)
    got = np.asarray(doffset, np.float32)[0, 0, inner, 0, 0]
    np.testing.assert_array_equal(got[:, 1], want)
    assert np.abs(np.asarray(dx, np.float32)[0, 0, inner, 0] - 1).max() <= 4e-3


@BOTH
def test_a_half_precision_offset_is_only_as_fine_as_its_type(implementation):
    """1000.375 is 1000 in bfloat16; float32 beside bfloat16 data holds it."""
    x = jnp.asarray(np.arange(COLUMNS) % 2, "bfloat16")[None, None, :, None]
    offset = np.zeros((1, 1, COLUMNS, 1, 1, 2), np.float32)
    offset[..., 1] = 1000.375
    for dtype, want in [("float32", 0.375), ("bfloat16", 0.0)]:
        y, _ = pull_back(
            lambda offset: deform_conv2d(
                x,
                offset,
                jnp.ones((1, 1, 1, 1), "bfloat16"),
                implementation=implementation,
            ),
            x,
            jnp.asarray(offset, dtype),
        )
        assert set(np.asarray(y, np.float32)[0, 0, 0:1000:2, 0]) == {want}


def ones(*shape, dtype="float32"):
    return jnp.ones(shape, dtype)


def convolution_sums(dtype, beside):
    """Name -> (function, cotangent, argument, element of its gradient)."""
    places = (1, 128, 128)
    row, column = np.meshgrid(np.arange(128), np.arange(128), indexing="ij")
    to_first_pixel = -np.stack([row, column], -1)[None, :, :, None, None]
    ramp = jnp.broadcast_to(jnp.arange(4.0)[None, None, :, None], (1, 1, 4, 128))
    still = jnp.zeros((1, 1, 4, 1, 1, 2))
    # A quarter of a pixel to the right, where a sample has a slope.
    inside = still.at[..., 1].set(0.25).astype(beside)
    x = ones(*places, 1, dtype=dtype)
    kernel = ones(1, 1, 1, 1, dtype=dtype)
    square = ones(1, 1, 128, 128, dtype=dtype)
    return {
        "x": (
            lambda x: deform_conv2d(x, to_first_pixel.astype("f"), kernel),
            x,
            x,
            (0, 0, 0, 0),
        ),
        "kernel": (
            lambda k: deform_conv2d(x, jnp.zeros((*places, 1, 1, 2)), k),
            x,
            kernel,
            (0, 0, 0, 0),
        ),
        "kernel, summed over images": (
            lambda k: deform_conv2d(
                x.reshape(256, 8, 8, 1), jnp.zeros((256, 8, 8, 1, 1, 2)), k
            ),
            x.reshape(256, 8, 8, 1),
            kernel,
            (0, 0, 0, 0),
        ),
        "bias": (
            lambda bias: deform_conv2d(
                x, jnp.zeros((*places, 1, 1, 2)), kernel, None, bias
            ),
            x,
            ones(1, dtype=dtype),
            (0,),
        ),
        "offset": (
            lambda offset: deform_conv2d(ramp.astype(dtype), offset, square),
            ones(1, 1, 4, 128, dtype=dtype),
            inside,
            (0, 0, 0, 0, 0, 1),
        ),
        "mask": (
            lambda mask: deform_conv2d(
                ones(1, 1, 4, 128, dtype=dtype), still, square, mask
            ),
            ones(1, 1, 4, 128, dtype=dtype),
            ones(1, 1, 4, 1, 1, dtype=beside),
            (0, 0, 1, 0, 0),
        ),
    }


@HALF
@BOTH
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        *((name, "float32") for name in convolution_sums("float32", "float32")),
        ("offset", "half"),
        ("mask", "half"),
    ],
)
def test_gradients_of_deform_conv2d_sum_up(
    name, beside, implementation, dtype, monkeypatch
):
    """16,384 contributions of 1 to one element."""
    monkeypatch.setenv("DCN_JAX_IMPLEMENTATION", implementation)
    case = convolution_sums(dtype, dtype if beside == "half" else beside)
    function, cotangent, argument, place = case[name]
    _, (gradient,) = pull_back(function, cotangent, argument)
    assert gradient.dtype == argument.dtype
    assert abs(float(gradient[place]) / MANY - 1) < 1e-3


@HALF
@BOTH
def test_an_output_sums_up(dtype, implementation):
    """1,024 channels under 16 taps."""
    y = deform_conv2d(
        ones(1, 4, 4, 1024, dtype=dtype),
        jnp.zeros((1, 1, 1, 1, 16, 2)),
        ones(4, 4, 1024, 1, dtype=dtype),
        padding="VALID",
        implementation=implementation,
    )
    assert float(y[0, 0, 0, 0]) == MANY


# A RoI of next to no size that reads pixel (0, 0), and no other.
TINY = [0.3, 0.3, 0.3001, 0.3001]
POOLING = {
    "roi_align": functools.partial(roi_align, sampling_ratio=2),
    "roi_align, adaptive": functools.partial(roi_align, sampling_ratio=0),
    "deform_roi_pool": deform_roi_pool,
    "roi_pool": roi_pool,
    "ps_roi_align": ps_roi_align,
    "ps_roi_pool": ps_roi_pool,
    # Its samples are at -0.5 and 0; more of them would read the next pixel too.
    "deform_ps_roi_pool": functools.partial(
        deform_ps_roi_pool, group_size=1, samples_per_part=2
    ),
}


@HALF
@BOTH
@pytest.mark.parametrize("name", POOLING)
def test_gradients_of_features_sum_up(name, implementation, dtype):
    rois = jnp.broadcast_to(jnp.asarray(TINY), (1, MANY, 4))
    features = ones(1, 3, 3, 2, dtype=dtype)
    _, (gradient,) = pull_back(
        lambda x: POOLING[name](
            x, rois, output_size=1, spatial_scale=1.0, implementation=implementation
        ),
        ones(1, MANY, 1, 1, 2, dtype=dtype),
        features,
    )
    assert gradient.dtype == dtype
    assert abs(float(gradient[0, 0, 0, 1]) / MANY - 1) < 1e-3


@HALF
@BOTH
@pytest.mark.parametrize("beside", ["float32", "half"])
def test_gradients_of_roi_offset_and_mask_sum_up(implementation, dtype, beside):
    """Over 16,384 channels; the RoI is 4 pixels wide, the map a ramp."""
    beside = dtype if beside == "half" else beside
    ramp = jnp.arange(8.0)[None, None, :, None] / 2
    features = jnp.broadcast_to(ramp, (1, 2, 8, MANY)).astype(dtype)
    _, (doffset, dmask) = pull_back(
        lambda offset, mask: deform_roi_pool(
            features,
            jnp.asarray([[[1.5, 0.5, 5.5, 1.5]]]),
            offset,
            mask,
            output_size=1,
            spatial_scale=1.0,
            sampling_ratio=1,
            offset_scale=0.5,
            implementation=implementation,
        ),
        ones(1, 1, 1, 1, MANY, dtype=dtype),
        jnp.zeros((1, 1, 1, 1, 2), beside),
        ones(1, 1, 1, 1, dtype=beside),
    )
    assert doffset.dtype == dmask.dtype == beside
    assert abs(float(doffset[0, 0, 0, 0, 1]) / MANY - 1) < 1e-3
    # The bin reads the ramp at column 3.
    assert abs(float(dmask[0, 0, 0, 0]) / (1.5 * MANY) - 1) < 1e-3


@HALF
@BOTH
@pytest.mark.parametrize("operator", ["deform_conv2d", "roi_align"])
def test_results_are_rounded_to_the_nearest_and_halves_to_even(
    operator, implementation, dtype
):
    """The mean of two pixels, many of them neighbours in that type."""
    rng = np.random.default_rng(0)
    channels = 77
    dtype = jnp.dtype(dtype)
    first = rng.uniform(1, 100, channels).astype(dtype)
    second = rng.uniform(1, 100, channels).astype(dtype)
    # The next number: their mean is exactly between the two.
    ties = slice(0, 50)
    second[ties] = (first[ties].view(np.uint16) + 1).view(dtype)
    x = np.stack([first, second])[None, None]

    if operator == "deform_conv2d":
        offset = np.zeros((1, 1, 2, 1, 1, 2), np.float32)
        offset[0, 0, 0, 0, 0, 1] = 0.5

        def run(x):
            kernel = jnp.eye(channels, dtype=dtype)[None, None]
            return deform_conv2d(x, offset, kernel, implementation=implementation)

    else:
        rois = np.asarray([[[0.5, 0, 1.5, 1], [1, 0, 2, 1]]], np.float32)

        def run(x):
            return roi_align(
                x,
                rois,
                output_size=1,
                spatial_scale=1.0,
                sampling_ratio=1,
                implementation=implementation,
            )[:, :, 0, 0][:, None]

    cotangent = rng.uniform(1, 100, (1, 1, 2, channels)).astype(dtype)
    y, (dx,) = pull_back(run, cotangent, x)

    def rounded(values):
        return np.asarray(values, np.float32).astype(dtype)

    first, second = first.astype(np.float32), second.astype(np.float32)
    np.testing.assert_array_equal(y[0, 0], rounded([(first + second) / 2, second]))
    g, h = cotangent[0, 0].astype(np.float32)
    np.testing.assert_array_equal(dx[0, 0], rounded([g / 2, g / 2 + h]))
