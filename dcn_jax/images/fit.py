"""From an image to its place on a canvas: small numpy functions.

Images are [H, W, 3] uint8 RGB; sizes are (height, width) in pixels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from dcn_jax.images.geometry import Geometry
from dcn_jax.images.opencv import opencv


def resized_sizes(
    sizes: Integer[np.ndarray, "n 2"],
    short_sides: Integer[np.ndarray, " n"] | int,
    max_side: int,
) -> Integer[np.ndarray, "n 2"]:
    """Sizes after bringing the short side to a length, the long side capped.

    Source: Detectron (SCALE, MAX_SIZE); rounding to the nearest pixel.
    """
    sizes = np.asarray(sizes, np.int64)
    scale = np.asarray(short_sides) / sizes.min(1)
    scale = np.minimum(scale, max_side / sizes.max(1))
    return np.maximum((sizes * scale[:, None] + 0.5).astype(np.int64), 1)


def fit_canvases(
    sizes: Integer[np.ndarray, "n 2"], canvases: Sequence[tuple[int, int]]
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, "n 2"]]:
    """Chooses the smallest canvas that holds each image.

    An image that no canvas holds goes to the canvas that shrinks it least, and is
    shrunk to fit.

    Returns:
      canvas [n]: indices into `canvases`; sizes [n, 2]: the sizes to resize to.

    Raises:
      ValueError: If `canvases` is empty or holds a size that is not positive.
    """
    shapes = np.asarray(canvases, np.int64)
    if shapes.ndim != 2 or shapes.shape[1:] != (2,) or not (shapes > 0).all():
        raise ValueError(
            f"`canvases` is {canvases}; expected one or more (height, width)"
        )
    sizes = np.asarray(sizes, np.int64)
    shrink = np.minimum((shapes[None] / sizes[:, None]).min(-1), 1.0)  # [n, canvas]
    # Ties (all canvases that hold the image) go to the smallest area.
    areas = shapes.prod(1)
    cost = np.where(shrink == shrink.max(1, keepdims=True), areas, np.inf)
    canvas = cost.argmin(1)
    shrink = shrink.max(1)
    fitted = np.maximum((sizes * shrink[:, None] + 1e-6).astype(np.int64), 1)
    return canvas, np.where((shrink < 1)[:, None], fitted, sizes)


def resize(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes bilinearly, as the peers' detectors do."""
    height, width = (int(side) for side in size)
    if image.shape[:2] == (height, width):
        return image
    cv2 = opencv()
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_labels(
    label_map: Integer[np.ndarray, "H W"], size: tuple[int, int]
) -> Integer[np.ndarray, "h w"]:
    """Takes for each pixel the value where its centre lies."""
    if label_map.shape == tuple(size):
        return label_map
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(label_map.shape, size, strict=True)
    )
    return label_map[rows[:, None], columns]


def place(
    image: UInt8[np.ndarray, "h w *c"],
    canvas: tuple[int, int],
    *,
    corner: tuple[int, int] = (0, 0),
    fill: int = 0,
) -> UInt8[np.ndarray, "H W *c"]:
    """Puts an image or a label map into the top left corner of a canvas.

    Args:
      image: What is put there, from its pixel `corner` on, as far as there is room.
      canvas: (height, width) of the result.
      corner: (top, left).
      fill: Value of the rest.
    """
    shape = (*canvas, *image.shape[2:])
    placed = np.full(shape, fill, np.uint8) if fill else np.zeros(shape, np.uint8)
    (height, width), (top, left) = canvas, corner
    seen = image[top : top + height, left : left + width]
    placed[: seen.shape[0], : seen.shape[1]] = seen
    return placed


def fit_image(
    image: UInt8[np.ndarray, "H0 W0 3"],
    *,
    canvases: Sequence[tuple[int, int]],
    short_side: int,
    max_side: int,
) -> tuple[UInt8[np.ndarray, "H W 3"], Geometry]:
    """Puts one image onto its canvas, as `eval_loader` does."""
    original = image.shape[:2]
    resized = resized_sizes(np.array([original]), short_side, max_side)
    (canvas,), (size,) = fit_canvases(resized, canvases)
    geometry = Geometry.of(original, size, canvases[canvas])
    return place(resize(image, geometry.size), geometry.canvas), geometry
