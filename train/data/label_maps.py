"""Label maps: a category for each pixel of an image.

Value v of a label map is the category `categories[v]` of its data set, and `IGNORE` is
none: there nothing is learned and nothing judged. Files are PNG with a byte a pixel.

Shape letters: H W, h w height and width in pixels.
"""

import struct
import zlib
from collections.abc import Collection
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from dcn_jax.images.files import check_size
from dcn_jax.images.fit import place, resize_labels
from dcn_jax.images.geometry import Geometry
from dcn_jax.images.headers import MAX_PIXELS, png_chunks, read_header
from dcn_jax.quoting import one_line
from train.data import transforms

IGNORE = 255

_GRAY, _PALETTE = 0, 3
_KINDS = {_GRAY: "gray values", _PALETTE: "a palette"}


def encode(label_map: UInt8[np.ndarray, "H W"]) -> bytes:
    """Returns a PNG file of gray values."""
    return cv2.imencode(".png", label_map)[1].tobytes()


def decode(
    data: bytes,
    name: str,
    max_pixels: int = MAX_PIXELS,
    *,
    palette: UInt8[np.ndarray, "256 3"] | None = None,
) -> UInt8[np.ndarray, "H W"]:
    """Reads a PNG file of gray values, or of places in a palette.

    Args:
      data: The encoded file.
      name: File name for error messages.
      max_pixels: Larger label maps (height * width) are refused before decoding.
      palette: Colours, RGB, that the values of the file must have; None: it must be
        gray.

    Raises:
      ValueError: It is broken, too large, or another kind of image; or a value has
        another colour. The message is one line that names it.
    """
    shown = one_line(name, 300)
    header = read_header(data, name)
    if not header.data.startswith(b"\x89PNG"):
        raise ValueError(f"{shown} is no PNG; expected one, whose values are exact")
    check_size(header, name, max_pixels)
    file = _as_gray(header.data)
    kind = _GRAY if palette is None else _PALETTE
    if (file.depth, file.colour_type) != (8, kind):
        found = _KINDS.get(file.colour_type, "colours")
        raise ValueError(
            f"{shown} is a PNG of {found} of {file.depth} bits; expected"
            f" {_KINDS[kind]} of 8 bits"
        )
    try:
        values = cv2.imdecode(np.frombuffer(file.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        values = None
    if values is None or values.shape != (header.height, header.width):
        raise ValueError(f"{shown} is broken: it cannot be decoded")
    if palette is not None:
        _check_palette(values, file.palette, palette, shown)
    return values


def check_labels(
    label_map: UInt8[np.ndarray, "H W"], known: Collection[int], name: str, whose: str
) -> None:
    """Refuses values that a data set does not have.

    Args:
      label_map: Values of the data set, before they become places in `categories`.
      known: Its labels; `IGNORE` is allowed beside them.
      name: File name for the error message.
      whose: The data set's name, likewise.

    Raises:
      ValueError: One line that names the file and a wrong value.
    """
    for value in _values(label_map):
        if value not in known and value != IGNORE:
            raise ValueError(
                f"{one_line(name, 300)} has pixels of the label {value}, which {whose}"
                " does not have"
            )


def on_canvas(
    label_map: UInt8[np.ndarray, "H0 W0"], geometry: Geometry
) -> UInt8[np.ndarray, "H W"]:
    """Puts the label map of an image where the image lies; the rest is `IGNORE`."""
    label_map = resize_labels(label_map, geometry.size)
    if geometry.flip:
        label_map = transforms.flip_image(label_map)
    return place(label_map, geometry.canvas, corner=geometry.corner, fill=IGNORE)


class _Gray(NamedTuple):
    """A PNG file whose values mean gray, whatever they meant before."""

    data: bytes
    depth: int  # bits of a value
    colour_type: int  # as the file had it
    palette: np.ndarray  # [n, 3] uint8, RGB; n is 0 without one


def _as_gray(data: bytes) -> _Gray:
    """Drops a palette: OpenCV would give its colours in place of the values.

    Args:
      data: From `read_header`, which has checked the lengths.
    """
    kept, palette = [data[:8]], b""
    depth = colour_type = -1
    for kind, chunk in png_chunks(data):
        content = chunk[8:-4]
        if kind == b"IHDR":
            depth, colour_type = content[8], content[9]
            checked = kind + content[:9] + bytes([_GRAY]) + content[10:]
            chunk = chunk[:4] + checked + struct.pack(">I", zlib.crc32(checked))
        if kind == b"PLTE":
            palette = content
        elif kind != b"tRNS":
            kept.append(chunk)
    whole = palette[: len(palette) // 3 * 3]
    colours = np.frombuffer(whole, np.uint8).reshape(-1, 3)
    return _Gray(b"".join(kept), depth, colour_type, colours)


def _check_palette(
    values: np.ndarray, found: np.ndarray, expected: np.ndarray, shown: str
) -> None:
    for value in _values(values):
        colour = tuple(found[value].tolist()) if value < len(found) else None
        if colour != tuple(expected[value].tolist()):
            raise ValueError(
                f"{shown} has another palette: its label {value} has"
                f" {'no colour' if colour is None else f'the colour {colour}'};"
                f" expected {tuple(expected[value].tolist())}"
            )


def _values(label_map: np.ndarray) -> list[int]:
    """The values that occur, by size."""
    return np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist()
