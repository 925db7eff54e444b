"""From an image file to its place on a canvas: small numpy functions.

Images are [H, W, 3] uint8 RGB; sizes are (height, width) in pixels; boxes are
[M, 4] as x1 y1 x2 y2 in pixels of the image they belong to.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from dcn_jax.quoting import one_line
from dcn_jax.regular_file import open_regular
from train.data.geometry import Geometry
from train.data.image_headers import read_header

MAX_PIXELS = 64_000_000

# The loader already works on several images at once; OpenCV's own threads would only
# compete with it and with XLA.
cv2.setNumThreads(0)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Reads (height, width) off the header of a JPEG or PNG file; decodes nothing.

    Args:
      data: The encoded file.
      name: File name for error messages.

    Raises:
      ValueError: If `data` is neither, or its header is broken.
    """
    header = read_header(data, name)
    return header.height, header.width


def decode_image(
    data: bytes, name: str, max_pixels: int = MAX_PIXELS, *, upright: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a JPEG or PNG file to RGB.

    Grayscale becomes RGB, 16 bit become 8, transparency is dropped.

    Args:
      data: The encoded file.
      name: File name for error messages.
      max_pixels: Larger images (height * width) are refused before decoding.
      upright: Turn a photograph as its orientation tag says; COCO's annotations ignore
        the tag.

    Raises:
      ValueError: If the image is broken, cut short or too large.
    """
    header = read_header(data, name)
    height, width = header.height, header.width
    if height * width > max_pixels:
        raise ValueError(
            f"{one_line(name, 300)} has {height} x {width} pixels; at most"
            f" {max_pixels} are allowed (`max_pixels`)"
        )
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(header.data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != (height, width):
        raise ValueError(f"{one_line(name, 300)} is broken: it cannot be decoded")
    return turn(image, header.orientation) if upright else image


def turn(
    image: UInt8[np.ndarray, "H0 W0 3"], orientation: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Turns and mirrors stored pixels upright, by the value of an orientation tag.

    Source: Exif 2.32, 4.6.4: where row 0 and column 0 of the stored pixels are shown.
    """
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def read_file(path: str | Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """Reads an image file, of which an image of `max_pixels` explains the size.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is a folder, a pipe or a device, or too large.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{one_line(str(path), 300)}: no such image file")
    # 4 channels of 16 bits, not compressed; or a small image with all that phones
    # store beside it.
    most = max(8 * max_pixels, 2**28)
    with open_regular(path, max_bytes=most) as file:
        return file.read(most + 1)


def read_image(
    path: str | Path, max_pixels: int = MAX_PIXELS, *, upright: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file; see `decode_image`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: As `read_file` and `decode_image`.
    """
    data = read_file(path, max_pixels)
    return decode_image(data, str(path), max_pixels, upright=upright)


def resized_sizes(
    sizes: Int[np.ndarray, "n 2"],
    short_sides: Int[np.ndarray, " n"] | int,
    max_side: int,
) -> Int[np.ndarray, "n 2"]:
    """Sizes after bringing the short side to a length, the long side capped.

    Source: Detectron (SCALE, MAX_SIZE); rounding to the nearest pixel.
    """
    sizes = np.asarray(sizes, np.int64)
    scale = np.asarray(short_sides) / sizes.min(1)
    scale = np.minimum(scale, max_side / sizes.max(1))
    return np.maximum((sizes * scale[:, None] + 0.5).astype(np.int64), 1)


def fit_canvases(
    sizes: Int[np.ndarray, "n 2"], canvases: Sequence[tuple[int, int]]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
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
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def scale_boxes(
    boxes: Float[np.ndarray, "M 4"], scale: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "M 4"]:
    """Scales boxes by (y, x) factors: new size / old size."""
    factors = np.asarray(scale, np.float32)[[1, 0, 1, 0]]
    return boxes * factors


def clip_boxes(
    boxes: Float[np.ndarray, "M 4"], size: tuple[int, int]
) -> Float[np.ndarray, "M 4"]:
    """Clips boxes to an image of `size`."""
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes, np.float32(0), limits)


def crop_boxes(
    boxes: Float[np.ndarray, "M 4"], corner: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "M 4"]:
    """Boxes in the window of `size` that begins at `corner`, (top, left)."""
    top, left = corner
    return clip_boxes(boxes - np.array([left, top, left, top], np.float32), size)


def flip_image(image: UInt8[np.ndarray, "H W *c"]) -> UInt8[np.ndarray, "H W *c"]:
    """Mirrors an image or a label map left to right."""
    return image[:, ::-1]


def flip_boxes(boxes: Float[np.ndarray, "M 4"], width: int) -> Float[np.ndarray, "M 4"]:
    """Mirrors boxes left to right in an image of `width`."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)


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
