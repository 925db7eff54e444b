"""Draws and reads image files: PNG by its chunks, JPEG by its markers."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from dcn_jax.images.files import check_image, read_image
from dcn_jax.images.headers import turned_size
from scripts.fuzz_files.bounded import Bounds

SUFFIXES = (".jpg", ".png")
REFUSALS = (ValueError, FileNotFoundError)

# Small, so that what is allocated beyond it shows.
_MAX_PIXELS = 4_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


def bounds(size: int) -> Bounds:
    """What reading a file of `size` bytes may take."""
    return Bounds(5 + size / 10**6, 16 * _MAX_PIXELS + (150 << 20) + 4 * size)


def read(path: Path) -> None:
    """Reads the file, as stored and upright; the sizes must be those of its header."""
    stored = read_image(path, _MAX_PIXELS)
    try:
        header = check_image(path.read_bytes(), str(path), _MAX_PIXELS)
    except ValueError as error:
        raise AssertionError("what can be decoded is refused before") from error
    assert stored.shape == (header.height, header.width, 3)
    upright = read_image(path, _MAX_PIXELS, upright=True)
    assert upright.shape[:2] == turned_size(header)


def write(rng: np.random.Generator, path: Path) -> str:
    """Writes the file of a case; returns what it is."""
    pixels = _pixels(rng)
    draw = rng.random()
    if draw < 0.45:
        data, what = _png(rng, pixels)
    elif draw < 0.9:
        data, what = _jpeg(rng, pixels)
    else:
        kind = str(rng.choice([".bmp", ".webp", ".tiff"]))
        data, what = cv2.imencode(kind, pixels)[1].tobytes(), kind
    if rng.random() < 0.15:
        change = _BYTES[rng.integers(len(_BYTES))]
        data, what = change(rng, data), f"{what} + {change.__name__.strip('_')}"
    path.write_bytes(data)
    return what


def _pixels(rng: np.random.Generator) -> np.ndarray:
    height, width = (int(10 ** rng.uniform(0, rng.choice([2, 3]))) for _ in range(2))
    channels = int(rng.choice([1, 3, 3, 3]))
    pixels = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
    return (
        pixels if rng.random() < 0.5 else cv2.blur(pixels, (9, 9)).reshape(pixels.shape)
    )


# PNG: a list of (type, content, length that is claimed).
_Chunks = list[tuple[bytes, bytes, int]]


def _png(rng: np.random.Generator, pixels: np.ndarray) -> tuple[bytes, str]:
    deep = rng.random() < 0.2
    pixels = pixels.astype(np.uint16) * 257 if deep else pixels
    if rng.random() < 0.2 and pixels.shape[2] == 3:
        pixels = np.concatenate([pixels, pixels[..., :1]], 2)
    encoded = cv2.imencode(".png", pixels)[1].tobytes()
    chunks, position = [], 8
    while position < len(encoded):
        (length,) = struct.unpack_from(">I", encoded, position)
        content = encoded[position + 8 : position + 8 + length]
        chunks.append((encoded[position + 4 : position + 8], content, length))
        position += 12 + length
    done = ["png"]
    for _ in range(int(rng.integers(0, 4))):
        change = _PNG_CHANGES[rng.integers(len(_PNG_CHANGES))]
        chunks = change(rng, chunks)
        done.append(change.__name__.strip("_"))
    parts = [
        struct.pack(">I", length) + kind + content + _checksum(rng, kind + content)
        for kind, content, length in chunks
    ]
    return _PNG + b"".join(parts), " + ".join(done)


def _checksum(rng: np.random.Generator, data: bytes) -> bytes:
    return rng.bytes(4) if rng.random() < 0.01 else struct.pack(">I", zlib.crc32(data))


def _place(rng: np.random.Generator, items: list) -> int:
    return int(rng.integers(0, max(len(items), 1)))


def _claims(rng: np.random.Generator, chunks: _Chunks) -> _Chunks:
    place = _place(rng, chunks)
    for kind, content, _ in chunks[place : place + 1]:
        length = int(rng.choice([0, 1, 2**20, 2**31 - 17, 2**31, 2**32 - 1]))
        chunks[place] = kind, content, length
    return chunks


def _extra(rng: np.random.Generator, chunks: _Chunks) -> _Chunks:
    kinds = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"]
    kinds += [b"IDAT", b"IHDR", b"PLTE", b"tRNS", b"IEND", b"abcd", b"CgBI", b"sBIT"]
    kind = kinds[rng.integers(len(kinds))]
    numbers = rng.choice([0, 1, 2, 8, 30000, 2**31 - 1], int(rng.integers(0, 8)))
    content = struct.pack(f">{len(numbers)}I", *numbers)
    draw = rng.random()
    if draw < 0.3:
        content = b"a\0\0" + zlib.compress(bytes(int(10 ** rng.uniform(2, 7.5))))
    elif draw < 0.5:
        content = rng.bytes(int(rng.integers(0, 99)))
    length = len(content)
    if rng.random() < 0.3:
        length = int(rng.choice([2**20, 2**31 - 17, 2**32 - 1]))
    chunks.insert(_place(rng, chunks), (kind, content, length))
    return chunks


def _header(rng: np.random.Generator, chunks: _Chunks) -> _Chunks:
    for place, (kind, content, length) in enumerate(chunks):
        if kind == b"IHDR" and len(content) == 13:
            fields = list(struct.unpack(">IIBBBBB", content))
            which = int(rng.integers(7))
            sizes = [0, 1, 7, 1999, 2001, 30000, 2**24, 2**31 - 1, 2**32 - 1]
            values = sizes if which < 2 else [0, 1, 2, 3, 4, 6, 8, 16, 255]
            fields[which] = int(rng.choice(values))
            chunks[place] = kind, struct.pack(">IIBBBBB", *fields), length
    return chunks


def _dropped(rng: np.random.Generator, chunks: list) -> list:
    del chunks[_place(rng, chunks) : _place(rng, chunks) + 1]
    return chunks


def _doubled(rng: np.random.Generator, chunks: list) -> list:
    place = _place(rng, chunks)
    copies = chunks[place : place + 1] * int(10 ** rng.uniform(0, 3.5))
    at = _place(rng, chunks)
    return chunks[:at] + copies + chunks[at:]


def _shuffled(rng: np.random.Generator, chunks: list) -> list:
    order = rng.permutation(len(chunks))
    return [chunks[i] for i in order]


def _inflated(rng: np.random.Generator, chunks: _Chunks) -> _Chunks:
    content = zlib.compress(bytes(int(10 ** rng.uniform(2, 8))))
    return [
        (kind, content, len(content)) if kind == b"IDAT" else (kind, old, length)
        for kind, old, length in chunks
    ]


_PNG_CHANGES: tuple[Callable[[np.random.Generator, list], list], ...] = (
    *(_claims, _extra, _extra, _header, _dropped, _doubled, _shuffled, _inflated),
)


def _jpeg(rng: np.random.Generator, pixels: np.ndarray) -> tuple[bytes, str]:
    """A list of byte strings: markers with their segments, and entropy-coded data."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(rng.integers(2))]
    options += [cv2.IMWRITE_JPEG_RST_INTERVAL, int(rng.choice([0, 0, 3]))]
    encoded = cv2.imencode(".jpg", pixels, options)[1].tobytes()
    parts, position = [encoded[:2]], 2
    while position < len(encoded) - 2:
        (length,) = struct.unpack_from(">H", encoded, position + 2)
        end = position + 2 + length
        parts.append(encoded[position:end])
        if encoded[position + 1] == 0xDA:
            data = end
            while encoded[end] != 0xFF or encoded[end + 1] in (0, *range(0xD0, 0xD8)):
                end += 1
            parts.append(encoded[data:end])
        position = end
    parts.append(encoded[position:])
    done = ["jpeg"]
    for _ in range(int(rng.integers(0, 4))):
        change = _JPEG_CHANGES[rng.integers(len(_JPEG_CHANGES))]
        parts = change(rng, parts)
        done.append(change.__name__.strip("_"))
    return b"".join(parts), " + ".join(done)


def _is_frame(part: bytes) -> bool:
    return part[:1] == b"\xff" and part[1:2] in (b"\xc0", b"\xc1", b"\xc2")


def _frame(rng: np.random.Generator, parts: list[bytes]) -> list[bytes]:
    """Another frame header, or another size in the one there is."""
    for part in [part for part in parts if _is_frame(part)][:1]:
        sides = rng.choice([0, 1, 8, 1999, 5000, 32000, 65535], 2)
        other = part[:5] + struct.pack(">HH", *sides.tolist()) + part[9:]
        if rng.random() < 0.3:
            code = int(rng.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB]))
            other = bytes((0xFF, code)) + other[2:]
        place = parts.index(part)
        if rng.random() < 0.5:
            parts[place] = other
        else:
            parts.insert(_place(rng, parts), other)
    return parts


def _hidden(rng: np.random.Generator, parts: list[bytes]) -> list[bytes]:
    """Bytes that some readers skip, or take for a segment."""
    choices = [
        b"\0\0",
        b"ab",
        b"\xff",
        b"\xff\0",
        b"\xff\xff\0",
        b"\xff\x01",
        b"\xff\xd0",
    ]
    choices += [
        b"\xff\0\0\x15",
        b"\xff\x02\0\x15",
        b"\xff\xd9",
        b"\xff\xd8",
        b"\xff\xf0",
    ]
    extra = choices[rng.integers(len(choices))]
    parts.insert(_place(rng, parts), extra * int(rng.integers(1, 3)))
    return parts


def _segment(rng: np.random.Generator, parts: list[bytes]) -> list[bytes]:
    code = int(rng.choice([*range(0xC4, 0xD0), *range(0xDA, 0xF0), 0xFE, 0x02]))
    content = rng.bytes(int(10 ** rng.uniform(0, 4)))
    if rng.random() < 0.3:
        tiff = struct.pack(
            "<4sIHHHII", b"II*\0", 8, 9, 0x112, 3, 1, _place(rng, [0] * 9)
        )
        code, content = 0xE1, b"Exif\0\0" + tiff
    length = len(content) + 2
    if rng.random() < 0.2:
        length = int(rng.choice([0, 1, 2, 65535]))
    part = bytes((0xFF, code)) + struct.pack(">H", length) + content
    parts.insert(_place(rng, parts), part)
    return parts


def _damaged(rng: np.random.Generator, parts: list[bytes]) -> list[bytes]:
    place = _place(rng, parts)
    for part in parts[place : place + 1]:
        changed = bytearray(part)
        if changed:
            changed[rng.integers(len(changed))] = rng.integers(256)
        parts[place] = bytes(changed)
    return parts


def _scans(rng: np.random.Generator, parts: list[bytes]) -> list[bytes]:
    """The last scan many times, on a large frame."""
    starts = [i for i, part in enumerate(parts) if part[:2] == b"\xff\xda"]
    if starts:
        scan = parts[starts[-1] : starts[-1] + 2]
        parts = parts[:-1] + scan * int(10 ** rng.uniform(0, 3.5)) + parts[-1:]
        if rng.random() < 0.5:
            parts = [
                p[:5] + struct.pack(">HH", 1990, 1990) + p[9:] if _is_frame(p) else p
                for p in parts
            ]
    return parts


_JPEG_CHANGES: tuple[Callable[[np.random.Generator, list[bytes]], list[bytes]], ...] = (
    *(_frame, _frame, _hidden, _hidden, _segment, _damaged, _scans),
    *(_dropped, _doubled, _shuffled),
)


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(0, len(data) + 1)]


def _flipped(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, max(len(data), 1), int(rng.integers(1, 9))):
        changed[place : place + 1] = rng.bytes(1)
    return bytes(changed)


def _longer(rng: np.random.Generator, data: bytes) -> bytes:
    return data + rng.bytes(int(10 ** rng.uniform(0, 5)))


def _behind(rng: np.random.Generator, data: bytes) -> bytes:
    return rng.bytes(int(rng.integers(1, 9))) + data


_BYTES = (_cut, _flipped, _longer, _behind)
