"""Deformable convolution in plain jnp, written to be read.

It is the oracle of the tests, the path for platforms that have no kernel, and what
second derivatives run.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

import functools

import jax
import jax.numpy as jnp

from xla_ops.deform_conv.positions import positions_in_window


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
      x: [N, H, W, C].
      offset: [N, P, Q, G, R*S, 2] as (dy, dx) in input pixels, in the type of sums.
      kernel: [1 or N, R, S, C/groups, K].
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
    positions = positions_in_window(
        offset, kernel.shape[1:3], strides, padding, dilation
    )
    per_image = kernel.shape[0] == x.shape[0]
    convolve = jax.vmap(
        functools.partial(_convolve_image, groups=groups, precision=precision),
        in_axes=(0, 0, 0 if per_image else None, None if mask is None else 0),
    )
    return convolve(x, positions, kernel if per_image else kernel[0], mask)


def _convolve_image(x, positions, kernel, mask, *, groups, precision):
    """`_convolve` for one image, [P, Q, K].

    Args:
      x: [H, W, C].
      positions: [P, Q, G, R*S, 2] as (y, x) in pixels of x.
      kernel: [R, S, C/groups, K].
      mask: [P, Q, G, R*S] or None.
      groups: Of channels that are convolved apart.
      precision: Of the products.
    """
    height, width, channels = x.shape
    rows, columns, offset_groups, taps, _ = positions.shape
    features = kernel.shape[-1]
    real = positions.dtype
    pixels = x.astype(real).reshape(
        height * width, offset_groups, channels // offset_groups
    )
    kernel = kernel.astype(real).reshape(
        taps, channels // groups, groups, features // groups
    )

    # The backward pass samples again instead of keeping the samples of all taps.
    @jax.checkpoint
    def convolve_tap(position, kernel, mask):
        y, x = position[..., 0], position[..., 1]
        sample = _sample(pixels, y, x, height, width)
        if mask is not None:
            sample = sample * mask[..., None]
        sample = sample.reshape(rows, columns, groups, channels // groups)
        return jnp.einsum("pqgc,cgk->pqgk", sample, kernel, precision=precision)

    def add_tap(total, operands):
        return total + convolve_tap(*operands), None

    by_tap = (
        jnp.moveaxis(positions, 3, 0),
        kernel,
        None if mask is None else jnp.moveaxis(mask, 3, 0),
    )
    shape = (rows, columns, groups, features // groups)
    total, _ = jax.lax.scan(add_tap, jnp.zeros_like(positions, shape=shape), by_tap)
    return total.reshape(rows, columns, features)


def _sample(pixels, y, x, height, width):
    """Bilinear values at (y, x) of a map that is surrounded by zeros.

    The cell is chosen by floor, so derivatives at integers are right-hand ones. A
    point that is not in [-1, H) x [-1, W), infinite ones too, has value and
    derivatives 0; at exactly -1 the value is 0 and the derivative the right-hand one,
    as in torchvision. NaN gives NaN.

    Args:
      pixels: [H*W, G, C/G].
      y: [P, Q, G] in pixels.
      x: [P, Q, G] in pixels.
      height: H.
      width: W.

    Returns:
      [P, Q, G, C/G].
    """
    inside = (y >= -1) & (y < height) & (x >= -1) & (x < width)
    unknown = jnp.isnan(y) | jnp.isnan(x)
    # Both coordinates carry the NaN of either.
    elsewhere = jnp.where(unknown, y + x, -2)
    y = jnp.where(inside, y, elsewhere)
    x = jnp.where(inside, x, elsewhere)
    y0, x0 = jnp.floor(y), jnp.floor(x)
    down, right = (y - y0)[..., None], (x - x0)[..., None]
    group = jnp.arange(pixels.shape[1])

    def corner(row, column):
        on_map = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = (
            jnp.where(on_map, place, 0).astype(jnp.int32) for place in (row, column)
        )
        pixel = jnp.where(on_map, row * width + column, height * width)
        return pixels.at[pixel, group[None, None]].get(mode="fill", fill_value=0)

    above = (1 - right) * corner(y0, x0) + right * corner(y0, x0 + 1)
    below = (1 - right) * corner(y0 + 1, x0) + right * corner(y0 + 1, x0 + 1)
    return (1 - down) * above + down * below
