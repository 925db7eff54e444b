"""Image files against pixels that are known."""

import struct

import cv2
import numpy as np
import pytest

from dcn_jax.images.files import decode_image, read_image
from dcn_jax.images.headers import read_header


def _encode(extension: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(extension, pixels)[1].tobytes()


def _size(data: bytes) -> tuple[int, int]:
    header = read_header(data, "a")
    return header.height, header.width


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
    assert _size(data) == (12, 20)
    decoded = decode_image(data, "a")
    assert decoded.shape == (12, 20, 3) and decoded.dtype == np.uint8
    # JPEG halves the resolution of colour: compare away from the edge.
    near = np.abs(decoded.astype(int) - pixels).max(-1)
    assert near[:, :8].max() < 8 and near[:, 12:].max() < 8


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_gray_becomes_rgb(extension):
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 2
    decoded = decode_image(_encode(extension, gray), "a")
    assert decoded.shape == (8, 8, 3)
    assert (decoded[..., 0] == decoded[..., 2]).all()


def test_transparent_and_16_bit_png_become_rgb():
    colour = np.full((5, 7, 4), 128, np.uint8)
    assert decode_image(_encode(".png", colour), "a").shape == (5, 7, 3)
    deep = np.full((5, 7), 0x8000, np.uint16)
    assert (decode_image(_encode(".png", deep), "a") == 128).all()


def test_an_orientation_tag_is_ignored(pixels):
    data = _encode(".jpg", pixels[..., ::-1])
    # Little-endian TIFF directory with one entry: orientation (0x0112) = 6.
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), 1).shape == (20, 12, 3)
    assert _size(turned) == (12, 20)
    np.testing.assert_array_equal(decode_image(turned, "a"), decode_image(data, "a"))


def test_progressive_jpeg_has_a_size(pixels):
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    data = cv2.imencode(".jpg", pixels, flags)[1].tobytes()
    assert _size(data) == (12, 20)


def test_broken_files_are_named(pixels):
    jpeg, png = _encode(".jpg", pixels), _encode(".png", pixels)
    broken = [b"", b"GIF89a", jpeg[:2], jpeg[:30], jpeg[: len(jpeg) // 2], jpeg[:-9]]
    broken += [b"\xff\xd8" + b"\xff" * 99, b"\xff\xd8\xff\xe0\0\0", png[:20], png[:60]]
    for data in broken:
        with pytest.raises(ValueError, match=r"^holiday\.jpg is ") as error:
            decode_image(data, "holiday.jpg")
        assert "\n" not in str(error.value)


def test_pixel_cap_holds_before_decoding(pixels):
    data = _encode(".png", pixels)
    assert decode_image(data, "a", max_pixels=240).shape == (12, 20, 3)
    with pytest.raises(ValueError, match="a has 12 x 20 pixels; at most 239 are"):
        decode_image(data, "a", max_pixels=239)
    # A header alone, of an image that would fill 10 TB: nothing is allocated.
    bomb = data[:16] + struct.pack(">II", 1_900_000, 1_900_000) + data[24:]
    with pytest.raises(ValueError, match="1900000 x 1900000 pixels"):
        decode_image(bomb, "a")


def test_read_image(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(_encode(".png", pixels[..., ::-1]))
    np.testing.assert_array_equal(read_image(path), pixels)
    with pytest.raises(FileNotFoundError, match=r"b\.png: no such image file"):
        read_image(tmp_path / "b.png")
