"""Image decoding and geometry against values worked out by hand."""

import struct

import cv2
import numpy as np
import pytest

from train.data import transforms
from train.data.geometry import Geometry


def _encode(extension: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(extension, pixels)[1].tobytes()


@pytest.fixture
def pixels() -> np.ndarray:
    """A picture of 12 x 20 pixels: red left, blue right, in RGB."""
    image = np.zeros((12, 20, 3), np.uint8)
    image[:, :10, 0] = 255
    image[:, 10:, 2] = 255
    return image


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_decodes_to_rgb(pixels, extension):
    data = _encode(extension, pixels[..., ::-1])
    assert transforms.image_size(data, "a") == (12, 20)
    decoded = transforms.decode_image(data, "a")
    assert decoded.shape == (12, 20, 3) and decoded.dtype == np.uint8
    # JPEG halves the resolution of colour: compare away from the edge.
    near = np.abs(decoded.astype(int) - pixels).max(-1)
    assert near[:, :8].max() < 8 and near[:, 12:].max() < 8


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_gray_becomes_rgb(extension):
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 2
    decoded = transforms.decode_image(_encode(extension, gray), "a")
    assert decoded.shape == (8, 8, 3)
    assert (decoded[..., 0] == decoded[..., 2]).all()


def test_transparent_and_16_bit_png_become_rgb():
    colour = np.full((5, 7, 4), 128, np.uint8)
    assert transforms.decode_image(_encode(".png", colour), "a").shape == (5, 7, 3)
    deep = np.full((5, 7), 0x8000, np.uint16)
    assert (transforms.decode_image(_encode(".png", deep), "a") == 128).all()


def test_an_orientation_tag_is_ignored(pixels):
    data = _encode(".jpg", pixels[..., ::-1])
    # Little-endian TIFF directory with one entry: orientation (0x0112) = 6.
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), 1).shape == (20, 12, 3)
    assert transforms.image_size(turned, "a") == (12, 20)
    np.testing.assert_array_equal(
        transforms.decode_image(turned, "a"), transforms.decode_image(data, "a")
    )


def test_progressive_jpeg_has_a_size(pixels):
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    data = cv2.imencode(".jpg", pixels, flags)[1].tobytes()
    assert transforms.image_size(data, "a") == (12, 20)


def test_broken_files_are_named(pixels):
    jpeg, png = _encode(".jpg", pixels), _encode(".png", pixels)
    broken = [b"", b"GIF89a", jpeg[:2], jpeg[:30], jpeg[: len(jpeg) // 2], jpeg[:-9]]
    broken += [b"\xff\xd8" + b"\xff" * 99, b"\xff\xd8\xff\xe0\0\0", png[:20], png[:60]]
    for data in broken:
        with pytest.raises(ValueError, match=r"^holiday\.jpg is ") as error:
            transforms.decode_image(data, "holiday.jpg")
        assert "\n" not in str(error.value)


def test_pixel_cap_holds_before_decoding(pixels):
    data = _encode(".png", pixels)
    assert transforms.decode_image(data, "a", max_pixels=240).shape == (12, 20, 3)
    with pytest.raises(ValueError, match="a has 12 x 20 pixels; at most 239 are"):
        transforms.decode_image(data, "a", max_pixels=239)
    # A header alone, of an image that would fill 10 TB: nothing is allocated.
    bomb = data[:16] + struct.pack(">II", 1_900_000, 1_900_000) + data[24:]
    with pytest.raises(ValueError, match="1900000 x 1900000 pixels"):
        transforms.decode_image(bomb, "a")


def test_read_image(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(_encode(".png", pixels[..., ::-1]))
    np.testing.assert_array_equal(transforms.read_image(path), pixels)
    with pytest.raises(FileNotFoundError, match=r"b\.png: no such image file"):
        transforms.read_image(tmp_path / "b.png")


def test_resized_sizes():
    sizes = np.array([[480, 640], [640, 480], [500, 500], [200, 1000], [3, 5000]])
    expected = [[800, 1067], [1067, 800], [800, 800], [267, 1333], [1, 1333]]
    np.testing.assert_array_equal(transforms.resized_sizes(sizes, 800, 1333), expected)
    jittered = transforms.resized_sizes(sizes[:2], np.array([240, 960]), 2000)
    np.testing.assert_array_equal(jittered, [[240, 320], [1280, 960]])


def test_fit_canvases():
    canvases = [(100, 200), (200, 100), (140, 140)]
    sizes = np.array(
        [
            [90, 180],
            [180, 90],
            [120, 120],
            [100, 100],
            [100, 300],
            [400, 100],
            [280, 280],
        ]
    )
    canvas, fitted = transforms.fit_canvases(sizes, canvases)
    np.testing.assert_array_equal(canvas, [0, 1, 2, 2, 0, 1, 2])
    np.testing.assert_array_equal(
        fitted,
        [
            [90, 180],
            [180, 90],
            [120, 120],
            [100, 100],
            [66, 200],
            [200, 50],
            [140, 140],
        ],
    )
    for wrong in ([], [(0, 5)], [5, 5]):
        with pytest.raises(ValueError, match="`canvases` is"):
            transforms.fit_canvases(sizes, wrong)


def test_images_shrunk_to_a_canvas_always_fit():
    rng = np.random.default_rng(0)
    canvases = [(64, 96), (96, 64), (80, 80)]
    sizes = rng.integers(1, 400, (2000, 2))
    canvas, fitted = transforms.fit_canvases(sizes, canvases)
    assert (fitted <= np.array(canvases)[canvas]).all() and (fitted >= 1).all()
    assert (fitted <= sizes).all()


def test_boxes_by_hand():
    boxes = np.array([[1, 2, 5, 8], [0, 0, 20, 10]], np.float32)
    flipped = transforms.flip_boxes(boxes, 20)
    np.testing.assert_array_equal(flipped, [[15, 2, 19, 8], [0, 0, 20, 10]])
    scaled = transforms.scale_boxes(boxes, np.array([2.0, 0.5]))
    np.testing.assert_array_equal(scaled, [[0.5, 4, 2.5, 16], [0, 0, 10, 20]])
    clipped = transforms.clip_boxes(np.array([[-3, 1, 25, 12.5]], np.float32), (10, 20))
    np.testing.assert_array_equal(clipped, [[0, 1, 20, 10]])
    for result in (flipped, scaled, clipped):
        assert result.dtype == np.float32
    assert transforms.flip_boxes(boxes[:0], 20).shape == (0, 4)


def test_flipping_twice_changes_nothing():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (9, 13, 3)).astype(np.uint8)
    twice = transforms.flip_image(transforms.flip_image(image))
    np.testing.assert_array_equal(twice, image)
    boxes = rng.integers(0, 13, (5, 4)).astype(np.float32)
    twice = transforms.flip_boxes(transforms.flip_boxes(boxes, 13), 13)
    np.testing.assert_array_equal(twice, boxes)


def test_a_flipped_box_covers_the_same_pixels():
    image = np.zeros((10, 16, 3), np.uint8)
    image[2:5, 3:9] = 7
    box = transforms.flip_boxes(np.array([[3, 2, 9, 5]], np.float32), 16)
    x1, y1, x2, y2 = box[0].astype(int)
    flipped = transforms.flip_image(image)
    assert (flipped[y1:y2, x1:x2] == 7).all() and (flipped > 0).sum() == 3 * 6 * 3


def test_fit_image(pixels):
    canvas, geometry = transforms.fit_image(
        pixels, canvases=[(40, 40), (24, 48)], short_side=24, max_side=100
    )
    assert canvas.shape == (24, 48, 3)
    assert geometry == Geometry((12, 20), (24, 40), (24, 48), flip=False)
    assert geometry.scale == (2, 2)
    assert (canvas[:, 40:] == 0).all()
    np.testing.assert_array_equal(
        canvas[:, :18], pixels[:1, :1].repeat(18, 1).repeat(24, 0)
    )
