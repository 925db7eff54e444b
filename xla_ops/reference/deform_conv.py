"""Deformable convolution in plain jnp.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

import functools

import jax
import jax.numpy as jnp


def deform_conv2d(x, offset, kernel, mask=None, *, precision, **geometry):
    """The forward pass.

    Args:
      x: [N, H, W, C].
      offset: [N, P, Q, G, R*S, 2] as (dy, dx) in input pixels; float64 beside a
        float64 `x`, else float32. Sums are kept in this type.
      kernel: [1 or N, R, S, C/groups, K]; N: each image has its own.
      mask: [N, P, Q, G, R*S] like offset, or None.
      precision: Of the products, as in `jax.lax.dot_general`.
      **geometry: strides, padding (top, left), dilation: pairs; groups.

    Returns:
      ([N, P, Q, K] in the type of x,).
    """
    y = _convolve(x, offset, kernel, mask, precision=precision, **geometry)
    return (y.astype(x.dtype),)


def deform_conv2d_gradients(x, offset, kernel, *mask_and_gradient, **params):
    """The backward pass.

    Args:
      x: As in `deform_conv2d`, like offset and kernel.
      offset: See there.
      kernel: See there.
      *mask_and_gradient: The mask, if there is one, then the gradient of the output,
        [N, P, Q, K] in the type of x.
      **params: As in `deform_conv2d`.

    Returns:
      Gradients of x, offset, kernel (for each image apart, [N, R, S, C/groups, K] in
      the type of offset) and, if there is one, mask.
    """
    *mask, gradient = mask_and_gradient
    kernel = jnp.broadcast_to(
        kernel.astype(offset.dtype), (x.shape[0], *kernel.shape[1:])
    )
    convolve = functools.partial(_convolve, **params)
    _, pull_back = jax.vjp(convolve, x, offset, kernel, *mask)
    return pull_back(gradient.astype(offset.dtype))


def _convolve(
    x, offset, kernel, mask=None, *, strides, padding, dilation, groups, precision
):
    """The forward pass, in the type of offset."""
    images, height, width, channels = x.shape
    _, rows, columns, offset_groups, taps, _ = offset.shape
    _, _, kernel_width, _, features = kernel.shape
    real = offset.dtype
    pixels = x.astype(real).reshape(
        images, height * width, offset_groups, channels // offset_groups
    )
    kernel = kernel.astype(real).reshape(
        kernel.shape[0], taps, channels // groups, groups, features // groups
    )
    top = jnp.arange(rows) * strides[0] - padding[0]
    left = jnp.arange(columns) * strides[1] - padding[1]

    # The backward pass samples again instead of keeping the samples of all taps.
    @jax.checkpoint
    def convolve_tap(tap, offset, kernel, mask):
        y = (top + tap // kernel_width * dilation[0]).astype(real)
        x = (left + tap % kernel_width * dilation[1]).astype(real)
        sample = _sample(
            pixels,
            y[None, :, None, None] + offset[..., 0],
            x[None, None, :, None] + offset[..., 1],
            height,
            width,
        )
        if mask is not None:
            sample = sample * mask[..., None]
        sample = sample.reshape(images, rows, columns, groups, channels // groups)
        if kernel.shape[0] == 1:
            return jnp.einsum(
                "npqgc,cgk->npqgk", sample, kernel[0], precision=precision
            )
        return jnp.einsum("npqgc,ncgk->npqgk", sample, kernel, precision=precision)

    def add_tap(total, operands):
        return total + convolve_tap(*operands), None

    by_tap = (
        jnp.arange(taps),
        jnp.moveaxis(offset, 4, 0),
        jnp.moveaxis(kernel, 1, 0),
        None if mask is None else jnp.moveaxis(mask, 4, 0),
    )
    shape = (images, rows, columns, groups, features // groups)
    zeros = jnp.zeros_like(offset, shape=shape)
    total, _ = jax.lax.scan(add_tap, zeros, by_tap)
    return total.reshape(images, rows, columns, features)


def _sample(pixels, y, x, height, width):
    """Bilinear values at (y, x) of a map that is surrounded by zeros.

    The cell is chosen by floor, so derivatives at integers are right-hand ones. A
    point that is not in [-1, H) x [-1, W), infinite ones too, has value and
    derivatives 0; at exactly -1 the value is 0 and the derivative the right-hand one,
    as in torchvision. NaN gives NaN.

    Args:
      pixels: [N, H*W, G, C/G].
      y: [N, P, Q, G] in pixels.
      x: [N, P, Q, G] in pixels.
      height: H.
      width: W.

    Returns:
      [N, P, Q, G, C/G].
    """
    inside = (y >= -1) & (y < height) & (x >= -1) & (x < width)
    unknown = jnp.isnan(y) | jnp.isnan(x)
    # Both coordinates carry the NaN of either.
    elsewhere = jnp.where(unknown, y + x, -2)
    y = jnp.where(inside, y, elsewhere)
    x = jnp.where(inside, x, elsewhere)
    y0, x0 = jnp.floor(y), jnp.floor(x)
    down, right = (y - y0)[..., None], (x - x0)[..., None]

    def corner(row, column):
        on_map = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = (
            jnp.where(on_map, place, 0).astype(jnp.int32) for place in (row, column)
        )
        return _take(pixels, jnp.where(on_map, row * width + column, height * width))

    above = (1 - right) * corner(y0, x0) + right * corner(y0, x0 + 1)
    below = (1 - right) * corner(y0 + 1, x0) + right * corner(y0 + 1, x0 + 1)
    return (1 - down) * above + down * below


@functools.partial(jax.vmap, in_axes=(0, 0))
@functools.partial(jax.vmap, in_axes=(1, 2), out_axes=2)
def _take(pixels, index):
    """Rows of pixels [H*W, C/G] at index [P, Q], zeros where it is H*W."""
    return pixels.at[index].get(mode="fill", fill_value=0)
