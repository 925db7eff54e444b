"""Image files to arrays: [H, W, 3] uint8 RGB; sizes are (height, width) in pixels."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dcn_jax.images.headers import MAX_PIXELS, Header, looks_damaged, read_header
from dcn_jax.images.opencv import opencv
from dcn_jax.quoting import one_line
from dcn_jax.regular_file import open_regular


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
    check_size(header, name, max_pixels)
    image = _decoded(header, name)
    return turn(image, header.orientation) if upright else image


def check_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads a file's header, and decodes the file only where it looks damaged.

    So a file that is cut short is found at the cost of reading it. Some damage within
    the pixels shows only to `decode_image`.

    Args:
      data: The encoded file.
      name: File name for error messages.
      max_pixels: Larger images (height * width) are refused.

    Raises:
      ValueError: If the image is broken, cut short or too large.
    """
    header = read_header(data, name)
    check_size(header, name, max_pixels)
    if looks_damaged(header):
        _decoded(header, name)
    return header


def check_size(header: Header, name: str, max_pixels: int) -> None:
    """Refuses an image with more pixels, before it is decoded.

    Raises:
      ValueError: One line that names the file.
    """
    if header.height * header.width > max_pixels:
        raise ValueError(
            f"{one_line(name, 300)} has {header.height} x {header.width} pixels; at"
            f" most {max_pixels} are allowed (`max_pixels`)"
        )


def _decoded(header: Header, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """The stored pixels."""
    cv2 = opencv()
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(header.data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != (header.height, header.width):
        raise ValueError(f"{one_line(name, 300)} is broken: it cannot be decoded")
    return image


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
