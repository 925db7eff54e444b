"""What an image file says of itself, and the part of it that a decoder may see.

Decoders trust lengths that a file claims, and do not all find the same header in a
crafted one. So what a decoder gets is put together here from the pieces that were
checked: the size that is checked is the size that is decoded.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from dcn_jax.quoting import one_line

# The most pixels, height * width, of an image that is read unless more is asked for.
MAX_PIXELS = 64_000_000
# What the pixels of a PNG are made of. Of the rest, animations hold further sizes, and
# texts and profiles are compressed.
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
# A marker that is followed by a length, or begins or ends an image: neither stuffing
# nor a restart between the data of a scan, nor what decoders skip before a marker.
_JPEG_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd8-\xfe])")
# APPn and comments, but for what tells the colours (JFIF, Adobe).
_JPEG_DROPPED = {*range(0xE1, 0xEE), 0xEF, 0xFE}
# Every scan of a progressive file passes over all pixels; libjpeg's own tools write at
# most as many.
_MAX_SCANS = 100


class Header(NamedTuple):
    """An image file's own words."""

    height: int  # of the stored pixels
    width: int
    # Exif: 1 is upright, 2 to 8 say how to turn or mirror the stored pixels.
    orientation: int
    # What to hand to a decoder.
    data: bytes


class _Broken(Exception):
    """Why a file is no image."""


def read_header(data: bytes, name: str) -> Header:
    """Reads the structure of a JPEG or PNG file; decodes nothing.

    Args:
      data: The encoded file.
      name: File name for error messages.

    Raises:
      ValueError: If `data` is neither, or its structure is broken.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data)
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
    except _Broken as error:
        raise ValueError(f"{one_line(name, 300)} is broken: {error}") from None
    except (struct.error, IndexError):
        pass
    raise ValueError(
        f"{one_line(name, 300)} is not a JPEG or PNG image, or its header is broken"
    )


def turned_size(header: Header) -> tuple[int, int]:
    """(height, width) of the image as its orientation tag wants it shown."""
    if header.orientation >= 5:
        return header.width, header.height
    return header.height, header.width


def looks_damaged(header: Header) -> bool:
    """Whether a decoder may refuse the pixels, as far as one sees without decoding.

    A JPEG file does not end as one does, or is of a rare kind; a chunk of a PNG file
    has another checksum, or none has pixels.
    """
    data = header.data
    if data[:2] == b"\xff\xd8":
        return not (data.endswith(b"\xff\xd9") and _common_frame(data))
    chunks = list(png_chunks(data))
    return all(kind != b"IDAT" for kind, _ in chunks) or any(
        zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big")
        for _, chunk in chunks
    )


def _common_frame(data: bytes) -> bool:
    """Whether a JPEG's frame is one that every decoder reads: of 8 bits, lossy."""
    code, position = _marker(data, 2)
    while code < 0xC0 or code > 0xCF or code in (0xC4, 0xC8, 0xCC):
        (length,) = struct.unpack_from(">H", data, position)
        code, position = _marker(data, position + length)
    return code in (0xC0, 0xC1, 0xC2) and data[position + 2] == 8


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields kind and bytes of each chunk of a PNG file (its specification, 5.3).

    Args:
      data: From `read_header`, which has checked the lengths.
    """
    position = 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position : position + 12 + length]
        position += 12 + length


def _png(data: bytes) -> Header:
    """Walks the chunks (PNG specification, 5.3)."""
    position, orientation, size, kept = 8, 1, None, [data[:8]]
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if size is None and (kind, length) != (b"IHDR", 13):
            raise IndexError
        if end > len(data):
            raise _Broken("a chunk is longer than the file")
        if kind == b"IHDR":
            if size is not None:
                raise _Broken("it has two headers")
            width, height = size = struct.unpack_from(">II", data, position + 8)
            if not width or not height:
                raise IndexError
        elif kind == b"eXIf":
            orientation = _orientation(data[position + 8 : end - 4])
        if kind in _PNG_CHUNKS:
            kept.append(data[position:end])
        if kind == b"IEND":
            return Header(height, width, orientation, b"".join(kept))
        position = end


def _jpeg(data: bytes) -> Header:
    """Walks the segments (ITU T.81, B.1 and B.2) as libjpeg does."""
    position, orientation, size, kept = 2, None, None, [data[:2]]
    while True:
        code, position = _marker(data, position)
        if code in (0xD8, 0xD9):  # another image begins, or this one ends
            raise IndexError
        (length,) = struct.unpack_from(">H", data, position)
        segment = data[position : position + length]
        if length < 2 or len(segment) < length:
            raise IndexError
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            if size is not None:
                raise _Broken("it has two frame headers")
            height, width = size = struct.unpack_from(">HH", segment, 3)
            if not width or not height:
                raise IndexError
        elif code == 0xE1 and orientation is None and segment[2:8] == b"Exif\0\0":
            orientation = _orientation(segment[8:])
        elif code == 0xDA:
            if size is None:
                raise IndexError
            _check_scans(data, position + length)
            kept.append(data[position - 2 :])
            return Header(height, width, orientation or 1, b"".join(kept))
        if code not in _JPEG_DROPPED:
            kept.append(bytes((0xFF, code)) + segment)
        position += length


def _marker(data: bytes, position: int) -> tuple[int, int]:
    """The next marker's code, and where what follows it begins."""
    found = _JPEG_MARKER.search(data, position)
    if found is None:
        raise IndexError
    return found[1][0], found.end()


def _check_scans(data: bytes, position: int) -> None:
    """Counts the scans after the first, and looks for another frame header."""
    scans = 1
    while True:
        try:
            code, position = _marker(data, position)
            if code in (0xD8, 0xD9):
                return
            if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
                raise _Broken("it has two frame headers")
            scans += code == 0xDA
            (length,) = struct.unpack_from(">H", data, position)
        except (struct.error, IndexError):  # cut short: the decoder says so
            return
        if scans > _MAX_SCANS:
            raise _Broken(f"it has more than {_MAX_SCANS} scans")
        position += length


def _orientation(exif: bytes) -> int:
    """Value of tag 0x0112 in the first directory of a TIFF header; 1 if it has none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == 0x0112 and kind == 3 and 1 <= value <= 8:
                return value
    except struct.error:
        pass
    return 1
