"""Writes a tiny VOCdevkit folder, and SBD's beside it, in their own formats."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy import io, sparse

from dcn_jax.images.palette import voc_palette
from train.data.sets.voc_folder import CLASSES


class Shape(NamedTuple):
    """An object: a filled rectangle."""

    name: str
    box: tuple[int, int, int, int]  # pixels from 1, both ends included
    difficult: bool = False


_CAT, _DOG = Shape("cat", (1, 1, 40, 30)), Shape("dog", (50, 20, 90, 60))
_HARD, _BEHIND = (
    Shape("cat", (10, 10, 50, 70), True),
    Shape("cat", (20, 1, 30, 9), True),
)
# Year -> name of an image -> (height, width), objects.
IMAGES = {
    2007: {
        "000005": ((60, 90), [_CAT, _DOG]),
        "000007": ((80, 60), [_HARD]),
        "000009": ((64, 64), [Shape("car", (5, 5, 60, 60)), _BEHIND]),
        "000011": ((60, 90), [Shape("dog", (30, 10, 70, 50))]),
    },
    2012: {
        "2008_000002": ((60, 90), [Shape("tvmonitor", (11, 11, 60, 50))]),
        "2008_000003": ((64, 64), [Shape("car", (3, 30, 62, 62))]),
        "2011_000015": ((60, 90), [Shape("aeroplane", (20, 20, 80, 40))]),
    },
}
# Year -> list -> names, of objects and of segmentation alike.
LISTS = {
    2007: {
        "trainval": ["000005", "000007", "000009"],
        "test": ["000011", "000009"],
    },
    2012: {
        "train": ["2008_000002"],
        "val": ["2008_000003"],
        "trainval": ["2008_000002", "2008_000003", "2011_000015"],
    },
}
# Of SBD: one that VOC trains on, one that it holds back, and two of its own.
SBD_LISTS = {
    "train": ["2008_000002", "2009_000001"],
    "val": ["2008_000003", "2009_000002"],
}


def write_voc_folder(folder: Path) -> Path:
    """Writes the folder and returns it."""
    for year, images in IMAGES.items():
        root = folder / f"VOC{year}"
        for part in ("JPEGImages", "Annotations", "SegmentationClass"):
            (root / part).mkdir(parents=True)
        for name, (size, shapes) in images.items():
            write_image(root / "JPEGImages" / f"{name}.jpg", size, shapes)
            (root / "Annotations" / f"{name}.xml").write_text(xml(name, size, shapes))
            file = palette_png(label_map(size, shapes), voc_palette())
            (root / "SegmentationClass" / f"{name}.png").write_bytes(file)
        for kind in ("Main", "Segmentation"):
            (root / "ImageSets" / kind).mkdir(parents=True)
            for name, names in LISTS[year].items():
                path = root / "ImageSets" / kind / f"{name}.txt"
                path.write_text("".join(f"{image}\n" for image in names))
    return folder


def write_sbd_folder(folder: Path) -> Path:
    """Writes SBD's `dataset` folder and returns it."""
    for part in ("img", "cls"):
        (folder / part).mkdir(parents=True)
    for split, names in SBD_LISTS.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            size, shapes = sbd_image(name)
            write_image(folder / "img" / f"{name}.jpg", size, shapes)
            labels = label_map(size, shapes, border=False)
            write_mat(folder / "cls" / f"{name}.mat", labels)
    return folder


def sbd_image(name: str) -> tuple[tuple[int, int], list[Shape]]:
    """Size and objects of one of SBD's images."""
    return IMAGES[2012].get(name, ((60, 90), [Shape("sofa", (5, 5, 50, 50))]))


def write_mat(path: Path, labels: np.ndarray, *, compress: bool = True) -> None:
    """Writes label map [H, W] uint8 as SBD has it."""
    boundaries = np.empty((len(CLASSES), 1), object)
    for row in range(len(CLASSES)):
        boundaries[row, 0] = sparse.csc_matrix(labels == row + 1, dtype=float)
    present = [[float(v)] for v in np.unique(labels) if v]
    content = {
        "Boundaries": boundaries,
        "Segmentation": labels,
        "CategoriesPresent": np.array(present),
    }
    io.savemat(path, {"GTcls": content}, do_compression=compress)


def write_image(path: Path, size: tuple[int, int], shapes: list[Shape]) -> None:
    """Writes an image in which each class has a colour."""
    pixels = np.full((*size, 3), 90, np.uint8)
    for name, (x1, y1, x2, y2), _ in shapes:
        colour = voc_palette()[CLASSES.index(name) + 1]
        pixels[y1 - 1 : y2, x1 - 1 : x2] = colour
    path.write_bytes(cv2.imencode(path.suffix, pixels[..., ::-1])[1].tobytes())


def label_map(
    size: tuple[int, int], shapes: list[Shape], *, border: bool = True
) -> np.ndarray:
    """Labels [H, W] uint8; the outermost pixels of an object are a border, 255."""
    labels = np.zeros(size, np.uint8)
    for name, (x1, y1, x2, y2), _ in shapes:
        if border:
            labels[y1 - 1 : y2, x1 - 1 : x2] = 255
            labels[y1 : y2 - 1, x1 : x2 - 1] = CLASSES.index(name) + 1
        else:
            labels[y1 - 1 : y2, x1 - 1 : x2] = CLASSES.index(name) + 1
    return labels


def xml(name: str, size: tuple[int, int], shapes: list[Shape]) -> str:
    """The annotation of an image, with parts as of persons' layouts."""
    objects = "".join(
        f"""
    <object>
        <name>{shape.name}</name>
        <pose>Unspecified</pose>
        <truncated>0</truncated>
        <difficult>{shape.difficult:d}</difficult>
        <part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>
        <bndbox>
            <xmin>{shape.box[0]}</xmin>
            <ymin>{shape.box[1]}</ymin>
            <xmax>{shape.box[2]}</xmax>
            <ymax>{shape.box[3]}</ymax>
        </bndbox>
    </object>"""
        for shape in shapes
    )
    return f"""<annotation>
    <folder>VOC</folder>
    <filename>{name}.jpg</filename>
    <size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>
    <segmented>1</segmented>{objects}
</annotation>
"""


def palette_png(labels: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG file of places [H, W] uint8 in a palette [n, 3]."""
    height, width = labels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in labels)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", palette.astype(np.uint8).tobytes()),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )
