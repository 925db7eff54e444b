"""What was found in an image, drawn on a copy of it.

Shape letters: H W, h w height and width in pixels, D detections, C categories.
"""

from collections.abc import Sequence

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


def draw_boxes(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "D 4"],
    scores: Float[np.ndarray, " D"],
    labels: Sequence[int],
    names: Sequence[str],
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with boxes, labels and scores on it.

    Args:
      image: RGB.
      boxes: x1 y1 x2 y2 in pixels of `image`.
      scores: Between 0 and 1.
      labels: 1 is the first of `names`.
      names: Of the categories.
    """
    cv2 = opencv()
    picture = image.copy()
    width = _line_width(image)
    corners = np.rint(np.clip(boxes, -_FAR, _FAR)).astype(int).tolist()
    # The best detection is drawn last, on top, and its label chooses its place first.
    order = np.argsort(scores, kind="stable").tolist()
    for i in order:
        x1, y1, x2, y2 = corners[i]
        cv2.rectangle(picture, (x1, y1), (x2, y2), _colour(labels[i]), width)
    font = max(min(image.shape[:2]), _SHORT_SIDE / 2) / 900
    taken: list[_Rectangle] = []
    for i in reversed(order):
        text = f"{names[labels[i] - 1]} {scores[i]:.2f}"
        (tw, th), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font, width)
        place = _free_place(corners[i], (tw, th + base), image.shape[:2], taken)
        taken.append(place)
        left, top, right, bottom = place
        cv2.rectangle(picture, (left, top), (right, bottom), _colour(labels[i]), -1)
        cv2.putText(
            picture, text, (left, top + th), cv2.FONT_HERSHEY_SIMPLEX, font,
            (255, 255, 255), max(1, width - 1), cv2.LINE_AA,
        )  # fmt: skip
    return picture


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
