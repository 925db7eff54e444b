"""deform_conv2d on CUDA: kernels sample, XLA multiplies.

The samples, multiplied with the kernel, give the output; they are called columns, as
in im2col. Columns are R*S times as large as the input, so the output is worked on in
chunks of rows, and neither direction keeps columns.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups, I convolution groups.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from xla_ops.deform_conv.cuda.input_gradient import input_gradient_form
from xla_ops.deform_conv.cuda.kernels import are_known, sample_columns, settings_of

# Columns of a chunk, on one device. A chunk is at least one row of the output.
_COLUMN_BYTES = 256 << 20


def deform_conv2d(x, offset, kernel, *mask, precision, devices, **geometry):
    """The forward pass, like the function of that name in `reference`."""
    settings = settings_of(kernel, geometry)
    weights = by_group(kernel, geometry["groups"])
    features = kernel.shape[-1]

    def add_rows(y, first, rows):
        places = _rows((offset, *mask), first, rows)
        columns = sample_columns(x, _first_row(x, first), *places, **settings)[0]
        part = output_of(columns, weights, precision, x.dtype)
        part = part.reshape(*part.shape[:3], features)
        return jax.lax.dynamic_update_slice_in_dim(y, part, first, 1)

    y = jnp.zeros_like(x, shape=(*offset.shape[:3], features))
    chunk = _rows_of_chunk(x, offset, x.dtype, devices)
    return (_in_chunks(add_rows, y, offset.shape[1], chunk),)


def deform_conv2d_gradients(x, offset, kernel, *mask_and_gradient, **params):
    """The backward pass, like the function of that name in `reference`."""
    parts = x.shape[0], 1
    return _gradients(x, offset, kernel, *mask_and_gradient, parts=parts, **params)


def deform_conv2d_summed_gradients(
    x, offset, kernel, *mask_and_gradient, devices, **params
):
    """The same, the gradient of a shared kernel summed over the images, [1, ...].

    The images of a device are multiplied in one product, so that what the sum has as
    its terms, R*S*C*K numbers an image, is not written.
    """
    images = x.shape[0]
    parts = images, 1
    if devices == 1 or (are_known((images,)) and images % devices == 0):
        parts = devices, images // devices
    dx, doffset, dkernel, *dmask = _gradients(
        x, offset, kernel, *mask_and_gradient, devices=devices, parts=parts, **params
    )
    # Outside of the loop over chunks: devices add up once.
    return dx, doffset, dkernel.sum(0, keepdims=True), *dmask


def _gradients(
    x, offset, kernel, *mask_and_gradient, parts, precision, devices, **geometry
):
    """The backward pass; of the kernel a gradient for each part of the batch.

    `parts` says how many there are, and how many images each has.
    """
    *mask, gradient = mask_and_gradient
    settings = settings_of(kernel, geometry)
    weights = by_group(kernel, geometry["groups"])
    real = offset.dtype
    # bfloat16 has the range of float32, so that nothing vanishes.
    kept = x.dtype if x.dtype == jnp.bfloat16 else real
    chunk = _rows_of_chunk(x, offset, kept, devices)
    input_gradient = input_gradient_form()

    def add_rows(sums, first, rows):
        dx, doffset, dkernel, *dmask = sums
        places = _rows((offset, *mask), first, rows)
        (g,) = _rows((gradient,), first, rows)
        g = g.reshape(*g.shape[:3], *weights.shape[-2:])
        dcolumns = columns_gradient(g, weights, precision, kept)
        more_dx, columns, *more = input_gradient(
            x,
            _first_row(x, first),
            *places,
            dcolumns=dcolumns,
            dtype=dx.dtype,
            devices=devices,
            settings=settings,
        )
        more_dkernel = kernel_gradient(columns, g, parts, precision, real)
        places = [
            jax.lax.dynamic_update_slice_in_dim(whole, part, first, 1)
            for whole, part in zip((doffset, *dmask), more, strict=True)
        ]
        return (
            dx + more_dx,
            places[0],
            dkernel + more_dkernel.reshape(dkernel.shape),
            *places[1:],
        )

    total = offset.shape[1]
    sums = (
        # Chunks are added up in the type of sums.
        jnp.zeros_like(x, dtype=x.dtype if chunk == total else real),
        jnp.zeros_like(offset),
        jnp.zeros_like(offset, shape=(parts[0], *kernel.shape[1:])),
        *(jnp.zeros_like(m, dtype=real) for m in mask),
    )
    dx, *others = _in_chunks(add_rows, sums, total, chunk)
    return dx.astype(x.dtype), *others


def output_of(columns, weights, precision, dtype):
    """[N, P, Q, I, K/I] of that type, from the columns."""
    return _einsum("npqitc,{n}tcik->npqik", columns, weights, precision, dtype)


def columns_gradient(g, weights, precision, dtype):
    """[N, P, Q, I, R*S, C/I] of that type, from the output's gradient `g`."""
    return _einsum("npqik,{n}tcik->npqitc", g, weights, precision, dtype)


def kernel_gradient(columns, g, parts, precision, dtype):
    """[parts, R*S, C/I, I, K/I] of that type: sums over each part of the batch.

    `parts` says how many there are, and how many images each has.
    """
    columns, g = (array.reshape(*parts, *array.shape[1:]) for array in (columns, g))
    return jnp.einsum(
        "dnpqitc,dnpqik->dtcik",
        columns,
        g,
        precision=precision,
        preferred_element_type=dtype,
    )


# Products


def by_group(kernel, groups):
    """[copies, R, S, C/I, K] -> [copies, R*S, C/I, I, K/I]."""
    copies, height, width, channels, features = kernel.shape
    return kernel.reshape(copies, height * width, channels, groups, features // groups)


def _einsum(subscripts, a, weights, precision, dtype):
    """A product with weights that are shared by the images, or of each image."""
    shared = weights.shape[0] == 1
    return jnp.einsum(
        subscripts.format(n="" if shared else "n"),
        a,
        weights[0] if shared else weights,
        precision=precision,
        preferred_element_type=dtype,
    )


# Chunks


def _rows_of_chunk(x, offset, dtype, devices):
    """How many rows of the output have their columns, of that type, in one chunk."""
    images, total, columns, _, taps, _ = offset.shape
    sizes = (*x.shape, *offset.shape)
    if not are_known(sizes) or 0 in sizes:
        return total
    images = -(-images // devices)
    row = images * columns * taps * x.shape[3] * jnp.dtype(dtype).itemsize
    return min(total, max(1, _COLUMN_BYTES // row))


def _in_chunks(add_rows: Callable, result, total, chunk):
    """Calls `result = add_rows(result, first, rows)` for all rows of the output."""
    if chunk == total:
        return add_rows(result, 0, total) if total != 0 else result
    result = jax.lax.fori_loop(
        0, total // chunk, lambda i, r: add_rows(r, i * chunk, chunk), result
    )
    rest = total % chunk
    return add_rows(result, total - rest, rest) if rest else result


def _rows(arrays, first, rows):
    return [jax.lax.dynamic_slice_in_dim(a, first, rows, 1) for a in arrays]


def _first_row(x, first):
    """The first row of a chunk, for each image: [N]."""
    return jnp.full_like(x, first, dtype=jnp.int32, shape=(x.shape[0],))
