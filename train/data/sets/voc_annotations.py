"""Reads the XML file that says what is in an image, as VOC writes it.

All that is wrong with a file is said at once. VOC counts pixels from 1, and a box holds
both pixels at its ends; so x1 and y1 lose one, and x2 and y2 stay, which are then the
far edges of the last pixels.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from dcn_jax.quoting import one_line, quoted
from train.data.sets.mistakes import Mistakes
from train.data.sets.voc_folder import CLASSES

# VOC's own have a few kB.
MAX_BYTES = 2**20
_MAX_DEPTH = 16
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LABELS = {name: label for label, name in enumerate(CLASSES, start=1)}


def read_objects(
    data: bytes, path: Path, size: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """Reads the objects of an image.

    Args:
      data: Content of the file.
      path: Its name, for messages.
      size: (height, width) of the image, which boxes may leave by a pixel and are
        clipped to when they are used; None: unknown.

    Returns:
      COCO annotations without ids: `category_id` (from 1), `bbox`, `area`, `iscrowd`,
      `segmentation` (none), and `difficult` where that is 1.

    Raises:
      ValueError: It is no such XML file.
      Mistakes: Objects are wrong.
    """
    shown = one_line(str(path), 300)
    root = _parsed(data, shown)
    if root.tag != "annotation":
        raise ValueError(
            f"{shown}: its outermost element is {quoted(root.tag)}; expected annotation"
        )
    objects, errors = [], []
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            objects.append(_object(element, size))
        except ValueError as error:
            errors.append(ValueError(f"{shown}: object {number}: {error}"))
    if errors:
        raise Mistakes(errors)
    return objects


def _object(
    element: ElementTree.Element, size: tuple[int, int] | None
) -> dict[str, Any]:
    name = _text(element, "name")
    if name not in _LABELS:
        raise ValueError(f"the class {quoted(name)} is none of VOC's")
    difficult = _text(element, "difficult") or "0"
    if difficult not in ("0", "1"):
        raise ValueError(f"`difficult` is {quoted(difficult)}; expected 0 or 1")
    box = element.find("bndbox")
    if box is None:
        raise ValueError("it has no `bndbox`")
    x1, y1, x2, y2 = (_coordinate(box, corner) for corner in _CORNERS)
    if x2 < x1 or y2 < y1:
        raise ValueError(
            f"`bndbox` is {_shown(x1, y1, x2, y2)}; expected xmin <= xmax, ymin <= ymax"
        )
    if size is not None:
        height, width = size
        # Some tools count from 0.
        if min(x1, y1) < 0 or x2 > width + 1 or y2 > height + 1:
            raise ValueError(
                f"`bndbox` is {_shown(x1, y1, x2, y2)}, out of the image of {width} x"
                f" {height}; expected x from 1 to {width}, y from 1 to {height}"
            )
    width, height = x2 - x1 + 1, y2 - y1 + 1
    annotation = {
        "category_id": _LABELS[name],
        "bbox": [x1 - 1, y1 - 1, width, height],
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [],
    }
    return {**annotation, "difficult": 1} if difficult == "1" else annotation


def _coordinate(box: ElementTree.Element, corner: str) -> float:
    text = _text(box, corner)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    # Refuses NaN too.
    if not abs(value) < 2**31:
        raise ValueError(f"`{corner}` is {quoted(text)}; expected a number of pixels")
    return value


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _shown(*corners: float) -> str:
    return f"({', '.join(f'{corner:g}' for corner in corners)})"


def _parsed(data: bytes, shown: str) -> ElementTree.Element:
    """Parses XML without a document type, which could define entities.

    Source: the attacks that Python's page on XML vulnerabilities lists all need one.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"elements lie {_MAX_DEPTH} deep in one another and more")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*declaration: object) -> None:
        del declaration
        raise ValueError("it has a document type (DTD), which VOC's files have not")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    # LookupError is for an encoding that nobody knows.
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise ValueError(
            f"{shown} is not valid XML: {one_line(str(error), 200)}"
        ) from None
    return builder.close()
