"""Draws and reads what says where things are in VOC's images: XML, .mat and PNG."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

from dcn_jax.images.palette import voc_palette
from scripts.fuzz_files.bounded import Bounds
from train.data import label_maps
from train.data.sets import mat_files, voc_annotations
from train.data.sets.voc_folder import CLASSES

SUFFIXES = (".xml", ".mat", ".png")
REFUSALS = (ValueError,)

_MAX_PIXELS = 4_000_000
_MAX_UNPACKED = 2**24


def bounds(size: int) -> Bounds:
    """What reading a file of `size` bytes may take: elements of XML are large."""
    return Bounds(3 + size / 10**6, (150 << 20) + 100 * size)


def read(path: Path) -> None:
    """Reads the file by its ending, and uses what is read."""
    data, name = path.read_bytes(), str(path)
    if path.suffix == ".xml":
        if len(data) > voc_annotations.MAX_BYTES:
            raise ValueError("too large to be opened")
        for found in voc_annotations.read_objects(data, path, (600, 600)):
            x, y, width, height = found["bbox"]
            assert -1 <= x <= x + width <= 601 and -1 <= y <= y + height <= 601
            assert 1 <= found["category_id"] <= len(CLASSES)
    elif path.suffix == ".mat":
        labels = mat_files.read_field(
            data, name, "GTcls", "Segmentation", max_bytes=_MAX_UNPACKED
        )
        assert labels.ndim == 2 and labels.nbytes <= _MAX_UNPACKED
    else:
        try:
            labels = label_maps.decode(data, name, _MAX_PIXELS, palette=voc_palette())
        except ValueError:
            labels = label_maps.decode(data, name, _MAX_PIXELS)
        assert labels.ndim == 2 and labels.dtype == np.uint8


def write(rng: np.random.Generator, path: Path) -> str:
    """Writes the file of a case; returns what it is."""
    data = {".xml": _xml, ".mat": _mat, ".png": _png}[path.suffix](rng)
    done = [path.suffix]
    for _ in range(int(rng.integers(0, 4))):
        changes = _BYTES + (_TEXT if path.suffix == ".xml" else ())
        change = changes[rng.integers(len(changes))]
        data = change(rng, data)
        done.append(change.__name__.strip("_"))
    path.write_bytes(data)
    return " + ".join(done)


def _xml(rng: np.random.Generator) -> bytes:
    objects = []
    for _ in range(int(rng.integers(0, 6))):
        x1, y1, x2, y2 = rng.integers([1, 1, 300, 300], [300, 300, 600, 600])
        corners = (
            f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        )
        objects.append(
            f"<object><name>{rng.choice(CLASSES)}</name>"
            f"<difficult>{rng.integers(2)}</difficult><bndbox>{corners}</bndbox></object>"
        )
    return f"<annotation>{''.join(objects)}</annotation>".encode()


def _mat(rng: np.random.Generator) -> bytes:
    height, width = (int(10 ** rng.uniform(0, 2.5)) for _ in range(2))
    labels = rng.integers(0, 21, (height, width)).astype(
        rng.choice(["u1", "u1", "f8", "i4"])
    )
    fields = {"Boundaries": labels > 9, "Segmentation": labels, "Other": "text"}
    stream = io.BytesIO()
    savemat(stream, {"GTcls": fields}, do_compression=bool(rng.integers(2)))
    data = stream.getvalue()
    if rng.random() < 0.1:
        packed = zlib.compress(bytes(int(10 ** rng.uniform(5, 8.5))), 1)
        data = data[:128] + struct.pack("<II", 15, len(packed)) + packed
    return data


def _png(rng: np.random.Generator) -> bytes:
    height, width = (int(10 ** rng.uniform(0, 2.5)) for _ in range(2))
    labels = rng.integers(0, 21, (height, width)).astype(np.uint8)
    gray = cv2.imencode(".png", labels)[1].tobytes()
    if rng.random() < 0.3:
        return gray
    # The same file, of places in a palette.
    depth = int(rng.choice([8, 8, 8, 4, 16, 1]))
    header = gray[16:24] + bytes([depth, int(rng.choice([3, 3, 3, 0, 2, 4, 6]))])
    header += gray[26:29]
    palette = voc_palette()[: int(rng.choice([256, 256, 21, 3, 0]))].tobytes()
    return gray[:8] + _chunk(b"IHDR", header) + _chunk(b"PLTE", palette) + gray[33:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return (
        struct.pack(">I", len(content))
        + checked
        + struct.pack(">I", zlib.crc32(checked))
    )


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(0, len(data) + 1)]


def _flipped(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, max(len(data), 1), int(rng.integers(1, 9))):
        if data:
            changed[place] = rng.choice([0, 1, 127, 255, int(rng.integers(256))])
    return bytes(changed)


def _claim(rng: np.random.Generator, data: bytes) -> bytes:
    place = 4 * int(rng.integers(0, len(data) // 4 + 1))
    value = int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
    return data[:place] + struct.pack("<I", value) + data[place + 4 :]


def _twice(rng: np.random.Generator, data: bytes) -> bytes:
    place = int(rng.integers(0, len(data) + 1))
    return data[:place] + data


def _any_text(rng: np.random.Generator, data: bytes) -> bytes:
    """Other text in an element."""
    values = ["", "nan", "inf", "-5", "1e400", "9" * 5000, "\x1b[31m", "é", "&lt;", "7"]
    value = str(rng.choice(values)).encode()
    places = list(re.finditer(rb">[^<>]+<", data))
    if not places:
        return data
    place = places[rng.integers(len(places))]
    return data[: place.start() + 1] + value + data[place.end() - 1 :]


def _without(rng: np.random.Generator, data: bytes) -> bytes:
    """An element is missing."""
    places = list(re.finditer(rb"<(\w+)>[^<>]*</\1>", data))
    if not places:
        return data
    place = places[rng.integers(len(places))]
    return data[: place.start()] + data[place.end() :]


def _repeated(rng: np.random.Generator, data: bytes) -> bytes:
    found = re.search(rb"<object>.*?</object>", data, re.DOTALL)
    if not found:
        return data
    count = int(10 ** rng.uniform(0, 4.5))
    return data[: found.start()] + found[0] * count + data[found.end() :]


def _deep(rng: np.random.Generator, data: bytes) -> bytes:
    count = int(10 ** rng.uniform(1, 6))
    tag = rng.choice(["a", "object", "bndbox"])
    return data.replace(b"<object>", f"<{tag}>".encode() * count, 1)


def _document_type(rng: np.random.Generator, data: bytes) -> bytes:
    entities = '<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + k)} "{f"&{chr(97 + k)};" * 10}">' for k in range(9)
    )
    text = f"<!DOCTYPE annotation [{entities}]>".encode() + data
    return re.sub(rb">[^<>]+<", b">&j;<", text, count=1)


def _declared(rng: np.random.Generator, data: bytes) -> bytes:
    encoding = rng.choice(["utf-16", "latin-1", "utf-7", "big5", "martian", "ascii"])
    return f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + data


_BYTES: tuple[Callable[[np.random.Generator, bytes], bytes], ...] = (
    *(_cut, _flipped, _flipped, _claim, _twice),
)
_TEXT = (
    *(_any_text, _any_text, _any_text, _without, _without, _repeated, _deep),
    *(_document_type, _declared),
)
