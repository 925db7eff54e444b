"""Draws handwritten digits, deformed, on cluttered ground.

Everything here is a pure function of its arguments and of the generator `rng`.
Masks and alphas are [h, w], images [H, W, 3]; colours are RGB 0..255.
"""

import dataclasses
import functools

import cv2
import numpy as np

# Mask areas in pixels that each size class draws from, log-uniformly, and the span
# that the drawn mask must keep to. COCO's borders, 32^2 and 96^2, lie well outside.
SIZES = ("small", "medium", "large")
_TARGET_AREA = {"small": (260, 800), "medium": (1350, 4200), "large": (9800, 12200)}
_ALLOWED_AREA = {"small": (220, 940), "medium": (1150, 6000), "large": (9500, 14000)}

_FIELD = 96  # side of an upsampled digit, in field pixels
_CELL = 8  # field pixels per pixel of the 8x8 original
_LEVEL = 0.24  # stroke outline on the sharpened field

_MAX_ROTATION = np.deg2rad(20.0)
_MAX_SHEAR = 0.25
_MAX_STRETCH = 1.25
_ELASTIC = 0.035  # standard deviation of the elastic shift, in digit heights
_MIN_CONTRAST = 75.0  # of luminance, between a digit and the ground under it


@dataclasses.dataclass(frozen=True)
class Digit:
    """A drawn digit: opacity [h, w] in 0..1, tight around its mask [h, w] bool."""

    alpha: np.ndarray
    mask: np.ndarray


@functools.cache
def digit_fields() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1797 handwritten 8x8 digits, upsampled smoothly.

    Returns:
      fields [1797, 96, 96] float32 (ink above `_LEVEL`), labels [1797] int.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    fields = np.empty((len(images), _FIELD, _FIELD), np.float32)
    for field, image in zip(fields, images.reshape(-1, 8, 8), strict=True):
        ink = np.pad(image / 16.0, 2).astype(np.float32)
        ink = cv2.resize(ink, (_FIELD, _FIELD), interpolation=cv2.INTER_CUBIC)
        ink = cv2.GaussianBlur(ink, (0, 0), 2.2)
        # Subtracting the surroundings keeps the holes of 4, 6, 8 and 9 open.
        field[...] = ink - 0.55 * cv2.GaussianBlur(ink, (0, 0), 9.0)
    return fields, labels


def draw_digit(
    rng: np.random.Generator, field: np.ndarray, size: str, deformation: float = 1.0
) -> Digit:
    """Draws one digit under a random affine and a smooth elastic deformation.

    Args:
      rng: Source of randomness.
      field: [96, 96] float32, one of `digit_fields()`.
      size: "small", "medium" or "large": COCO's class of the mask area.
      deformation: How far it may be rotated, sheared, stretched and bent; 1 is up to
        20 degrees.
    """
    low, high = np.log(_TARGET_AREA[size])
    area = np.exp(rng.uniform(low, high))
    ink = field > _LEVEL
    limits = np.array((_MAX_ROTATION, _MAX_SHEAR)) * deformation
    rotation, shear = rng.uniform(-1, 1, 2) * limits
    stretch = _MAX_STRETCH ** (deformation * rng.uniform(-0.5, 0.5))
    cos, sin = np.cos(rotation), np.sin(rotation)
    affine = (
        np.array([[cos, -sin], [sin, cos]])
        @ np.array([[1.0, shear], [0.0, 1.0]])
        @ np.diag([stretch, 1 / stretch])
    )
    bend = _ELASTIC * deformation * _FIELD * 8 / 12
    elastic = rng.normal(0.0, bend, (5, 5, 2)).astype(np.float32)
    # Room for what bending moves out of the digit's own rectangle.
    room = _CELL * max(1.0, 2 * deformation - 1)
    scale = np.sqrt(area / ink.sum())
    low, high = _ALLOWED_AREA[size]
    while True:
        digit = _warp(field, ink, affine * scale, elastic, room)
        drawn = digit.mask.sum()
        if low <= drawn <= high:
            return digit
        # The affine keeps the area, the elastic part only nearly does.
        scale *= np.sqrt(area / drawn)


def _warp(
    field: np.ndarray,
    ink: np.ndarray,
    affine: np.ndarray,
    elastic: np.ndarray,
    room: float,
) -> Digit:
    """Draws `field` through `affine` (field x, y to pixels) and an elastic grid."""
    rows, columns = np.nonzero(ink.any(1))[0], np.nonzero(ink.any(0))[0]
    middle = np.array([columns[[0, -1]].mean(), rows[[0, -1]].mean()])
    half = np.array([np.ptp(columns), np.ptp(rows)]) / 2 + room
    width, height = np.ceil(2 * np.abs(affine) @ half).astype(int)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x -= (width - 1) / 2
    y -= (height - 1) / 2
    inverse = np.linalg.inv(affine)
    shift = cv2.resize(elastic, (width, height), interpolation=cv2.INTER_CUBIC)
    drawn = cv2.remap(
        field,
        (inverse[0, 0] * x + inverse[0, 1] * y + middle[0] + shift[..., 0]).astype(
            "f4"
        ),
        (inverse[1, 0] * x + inverse[1, 1] * y + middle[1] + shift[..., 1]).astype(
            "f4"
        ),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0.0,
    )
    # An edge rises over one cell of the original; sharpen it to about 1.5 pixels.
    steepness = _CELL * np.sqrt(np.abs(np.linalg.det(affine))) / 1.5
    alpha = np.clip((drawn - _LEVEL) * steepness + 0.5, 0, 1)
    mask = alpha >= 0.5
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Digit(alpha[box], mask[box])


def place(
    rng: np.random.Generator, digits: list[Digit], side: int
) -> list[tuple[int, int]] | None:
    """Finds room for every digit: masks apart, boxes overlapping by 10 % at most.

    Args:
      rng: Source of randomness.
      digits: Digits in the order in which they are placed (largest first is best).
      side: Height and width of the image in pixels.

    Returns:
      (top, left) of each digit, or None if no room was found.
    """
    taken = np.zeros((side, side), bool)
    boxes = np.zeros((0, 4))
    corners = []
    for digit in digits:
        height, width = digit.mask.shape
        area = height * width
        for _ in range(60):
            if height > side - 4 or width > side - 4:
                return None
            top = int(rng.integers(2, side - height - 1))
            left = int(rng.integers(2, side - width - 1))
            box = np.array([left, top, left + width, top + height], float)
            overlap = np.clip(
                np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]),
                0,
                None,
            ).prod(-1)
            smaller = np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(-1), area)
            near = taken[top : top + height, left : left + width]
            if (overlap <= 0.1 * smaller).all() and not (near & digit.mask).any():
                break
        else:
            return None
        corners.append((top, left))
        boxes = np.concatenate([boxes, box[None]])
        # Two clear pixels between the strokes of two digits.
        blot = np.zeros((height + 4, width + 4), np.uint8)
        blot[2:-2, 2:-2] = digit.mask
        blot = cv2.dilate(blot, np.ones((5, 5), np.uint8)).astype(bool)
        taken[top - 2 : top + height + 2, left - 2 : left + width + 2] |= blot
    return corners


def ground(rng: np.random.Generator, side: int) -> np.ndarray:
    """Cluttered ground without digits: gradient, smooth noise, shapes, long lines.

    Returns:
      [side, side, 3] float32, 0..255.
    """
    corners = rng.uniform(40, 215) + rng.uniform(-40, 40, (2, 2, 3))
    image = cv2.resize(corners.astype(np.float32), (side, side))
    cells = int(rng.integers(4, 13))
    noise = rng.normal(0, rng.uniform(5, 18), (cells, cells, 3)).astype(np.float32)
    image += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(3, 8)):
        _draw_shape(rng, image)
    for _ in range(rng.integers(0, 4)):
        # From border to border, so that no piece of a line reads as a 1.
        start, end = rng.uniform(0, side, 2)
        first, last = (int(start), -2), (int(end), side + 2)
        if rng.random() < 0.5:
            first, last = first[::-1], last[::-1]
        colour = rng.uniform(20, 235, 3).tolist()
        cv2.line(image, first, last, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    return np.clip(image, 0, 255)


def _draw_shape(rng: np.random.Generator, image: np.ndarray) -> None:
    """Blends one filled blob, rectangle or triangle into `image`, in place."""
    side = len(image)
    radius = rng.uniform(0.04, 0.22) * side
    centre = rng.uniform(0, side, 2)
    kind = rng.integers(3)
    if kind == 0:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        wobble = 1 + 0.18 * np.sin(rng.integers(2, 5) * angles + rng.uniform(0, 6.3))
        points = wobble[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind == 1:
        angle = rng.uniform(0, np.pi)
        across = rng.uniform(0.5, 1.0)
        points = np.array([(-1, -across), (1, -across), (1, across), (-1, across)])
        cos, sin = np.cos(angle), np.sin(angle)
        points = points @ np.array([[cos, -sin], [sin, cos]])
    else:
        angles = rng.uniform(0, 6.3) + np.array([0, 2.1, 4.2]) + rng.normal(0, 0.3, 3)
        points = np.stack([np.cos(angles), np.sin(angles)], 1)
    points = np.round(centre + radius * points).astype(np.int32)
    low = np.clip(points.min(0) - 1, 0, side - 1)
    high = np.clip(points.max(0) + 2, low + 1, side)
    patch = image[low[1] : high[1], low[0] : high[0]]
    shape = np.zeros(patch.shape[:2], np.float32)
    cv2.fillPoly(shape, [points - low.astype(np.int32)], 1.0, cv2.LINE_AA)
    opacity = rng.uniform(0.3, 0.8) * shape[..., None]
    patch += opacity * (rng.uniform(20, 235, 3).astype(np.float32) - patch)


def paint(
    rng: np.random.Generator, image: np.ndarray, digit: Digit, top: int, left: int
) -> None:
    """Blends a digit of a random colour into `image` [H, W, 3] float32, in place."""
    height, width = digit.mask.shape
    patch = image[top : top + height, left : left + width]
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    under = float((patch[digit.mask] @ weights).mean())
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    contrast = rng.uniform(_MIN_CONTRAST, 150.0)
    lighter = rng.random() < (255.0 - under) / 255.0
    wanted = np.clip(under + (contrast if lighter else -contrast), 8, 247)
    # Shift all channels to the wanted luminance; clipping may cost a little of it.
    colour = np.clip(
        colour * 0.5 + 64 + (wanted - weights @ (colour * 0.5 + 64)), 0, 255
    )
    opacity = rng.uniform(0.85, 1.0) * digit.alpha[..., None]
    patch += opacity.astype(np.float32) * (colour - patch)


def add_noise(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Adds sensor noise; returns uint8 [H, W, 3]."""
    noise = rng.standard_normal(image.shape, np.float32)
    return np.clip(image + rng.uniform(2, 8) * noise, 0, 255).astype(np.uint8)
