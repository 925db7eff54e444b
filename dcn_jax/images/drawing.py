"""What was found in an image, drawn on a copy of it.

Shape letters: H W, h w height and width in pixels, D detections, C categories.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from dcn_jax.images.opencv import opencv

# Small images are enlarged before labels are written on them: to this short side, where
# the long one does not exceed the other.
_SHORT_SIDE, _LONG_SIDE = 512, 2048
# How much of a mask's colour covers the image.
_TINT = 0.4
# The same where all pixels have one; many of their colours are dark.
_MAP_TINT = 0.6
# Beyond any picture; OpenCV takes no larger numbers.
_FAR = 1e5
# Colours of the labels, repeated (Tableau's ten).
_COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
)  # fmt: skip

# Weights of R, G, B in the lightness of a colour, those of ITU-R BT.601 ...
_LIGHTNESS = (0.299, 0.587, 0.114)
# ... and that above which black letters are read better than white ones.
_LIGHT = 186

# left, top, right, bottom.
_Rectangle = tuple[int, int, int, int]


def check_size(image: np.ndarray, size: tuple[int, int]) -> None:
    """Refuses to draw on an image what was found in one of another size.

    Raises:
      ValueError: It is not [H, W, 3] uint8 of that size.
    """
    expected = (*size, 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise ValueError(
            f"`image` is {image.dtype} of shape {image.shape}; expected uint8 of shape "
            f"{expected}, the image that this was found in"
        )


def enlarged(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Returns the image, or where it is small a larger copy, to draw on."""
    short, long = sorted(image.shape[:2])
    scale = max(1.0, min(_SHORT_SIDE / short, _LONG_SIDE / long))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    cv2 = opencv()
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def draw_mask(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], label: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with an object tinted and outlined.

    Args:
      image: RGB.
      mask: Which pixels are inside of the object.
      label: Of its category, from 1; says the colour.
    """
    cv2 = opencv()
    colour = _colour(label)
    paint = np.full_like(image, colour)
    tinted = cv2.addWeighted(image, 1 - _TINT, paint, _TINT, 0)
    picture = np.where(mask[..., None], tinted, image)
    outlines, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    return cv2.drawContours(picture, outlines, -1, colour, _line_width(image))


def draw_label_map(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Integer[np.ndarray, "H W"],
    colours: UInt8[np.ndarray, "C 3"],
    shown: Bool[np.ndarray, " C"],
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with each pixel tinted in the colour of its label.

    Args:
      image: RGB.
      labels: From 0.
      colours: Of the labels.
      shown: Which labels are tinted.
    """
    tinted = opencv().addWeighted(image, 1 - _MAP_TINT, colours[labels], _MAP_TINT, 0)
    return np.where(shown[labels][..., None], tinted, image)


def draw_region_names(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Integer[np.ndarray, "H W"],
    names: Sequence[str],
    colours: UInt8[np.ndarray, "C 3"],
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with the name of each label in the midst of its pixels.

    Args:
      image: RGB.
      labels: From 0.
      names: Of the labels; "" is not written, nor are labels that have none.
      colours: Of the labels.
    """
    picture, style = image.copy(), _Lettering.of(image)
    taken: list[_Rectangle] = []
    for label in map(int, np.unique(labels)):
        name = names[label] if label < len(names) else ""
        if not name:
            continue
        y, x = _midst(labels == label)
        size = width, height = style.size(name)
        top, left = y - height // 2, x - width // 2
        box = (left, top + height, left + width, top + height)
        place = _free_place(box, size, image.shape[:2], taken)
        taken.append(place)
        red, green, blue = colours[label].tolist()
        style.write(picture, name, place, (red, green, blue))
    return picture


def _midst(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int]:
    """The pixel (y, x) of a mask that is farthest from what is outside of it."""
    cv2 = opencv()
    # Beyond the border of the picture is outside.
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
    # Of a ridge, its middle.
    deepest = np.argwhere(depth >= 0.99 * depth.max())
    away = np.abs(deepest - deepest.mean(0)).sum(1)
    y, x = (deepest[away.argmin()] - 1).tolist()
    return y, x


def draw_boxes(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "D 4"],
    scores: Float[np.ndarray, " D"] | None,
    labels: Sequence[int],
    names: Sequence[str],
    *,
    thin: bool = False,
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with boxes, labels and scores on it.

    Args:
      image: RGB.
      boxes: x1 y1 x2 y2 in pixels of `image`.
      scores: Between 0 and 1; None of ground truth, which has none.
      labels: 1 is the first of `names`.
      names: Of the categories.
      thin: Whether the boxes have the thinnest of lines.
    """
    cv2 = opencv()
    picture, style = image.copy(), _Lettering.of(image)
    width = 1 if thin else style.width
    corners = np.rint(np.clip(boxes, -_FAR, _FAR)).astype(int).tolist()
    # The best detection is drawn last, on top, and its label chooses its place first.
    ranks = np.arange(len(boxes)) if scores is None else scores
    order: list[int] = np.argsort(ranks, kind="stable").tolist()
    for i in order:
        x1, y1, x2, y2 = corners[i]
        cv2.rectangle(picture, (x1, y1), (x2, y2), _colour(labels[i]), width)
    taken: list[_Rectangle] = []
    for i in reversed(order):
        text = names[labels[i] - 1]
        if scores is not None:
            text = f"{text} {scores[i]:.2f}"
        size = style.size(text)
        taken.append(_free_place(corners[i], size, image.shape[:2], taken))
        style.write(picture, text, taken[-1], _colour(labels[i]))
    return picture


def draw_note(
    image: UInt8[np.ndarray, "H W 3"], text: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with a line of text in its lower left corner.

    Args:
      image: RGB.
      text: The line.
    """
    picture, style = image.copy(), _Lettering.of(image)
    width, height = style.size(text)
    top = max(0, image.shape[0] - height)
    style.write(picture, text, (0, top, width, top + height), (0, 0, 0))
    return picture


class _Lettering(NamedTuple):
    """How large letters are in a picture."""

    font: float
    width: int  # of lines, in pixels

    @classmethod
    def of(cls, image: np.ndarray) -> "_Lettering":
        font = max(min(image.shape[:2]), _SHORT_SIDE / 2) / 900
        return cls(font, _line_width(image))

    def size(self, text: str) -> tuple[int, int]:
        """(width, height) in pixels."""
        (width, height), base = opencv().getTextSize(
            text, opencv().FONT_HERSHEY_SIMPLEX, self.font, self.width
        )
        return width, height + base

    def write(
        self,
        picture: np.ndarray,
        text: str,
        place: _Rectangle,
        colour: tuple[int, int, int],
    ) -> None:
        """Writes in white, or on a light colour in black, on a rectangle."""
        cv2 = opencv()
        left, top, right, bottom = place
        (_, height), _ = cv2.getTextSize(
            text, cv2.FONT_HERSHEY_SIMPLEX, self.font, self.width
        )
        cv2.rectangle(picture, (left, top), (right, bottom), colour, -1)
        ink = (0, 0, 0) if np.dot(_LIGHTNESS, colour) > _LIGHT else (255, 255, 255)
        cv2.putText(
            picture, text, (left, top + height), cv2.FONT_HERSHEY_SIMPLEX, self.font,
            ink, max(1, self.width - 1), cv2.LINE_AA,
        )  # fmt: skip


def _free_place(
    box: Sequence[int],
    size: tuple[int, int],
    shape: tuple[int, ...],
    taken: Sequence[_Rectangle],
) -> _Rectangle:
    """Where a label hides no other: above its box, else in it, below it, or further.

    Args:
      box: x1 y1 x2 y2.
      size: (width, height) of the label.
      shape: (height, width) of the picture, which a label does not leave.
      taken: Places of the labels before it.
    """
    (width, height), (high, wide) = size, shape
    x1, y1, _, y2 = box
    left = max(0, min(x1, wide - width))
    lines = range(y1 + height, max(high, y1 + height + 1), height + 1)
    tops = [y1 - height, y1, y2 - height, y2, *lines]
    tops = [top for top in tops if 0 <= top <= high - height] or [max(0, y1)]
    places = [(left, top, left + width, top + height) for top in tops]
    free = (p for p in places if not any(_overlap(p, other) for other in taken))
    return next(free, places[0])


def _overlap(one: _Rectangle, other: _Rectangle) -> bool:
    return (
        one[0] < other[2]
        and other[0] < one[2]
        and one[1] < other[3]
        and other[1] < one[3]
    )


def _colour(label: int) -> tuple[int, int, int]:
    return _COLOURS[(label - 1) % len(_COLOURS)]


def _line_width(image: np.ndarray) -> int:
    return max(2, round(min(image.shape[:2]) / 250))
