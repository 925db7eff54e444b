"""Label maps: their files, and where they lie on a canvas."""

import io

import cv2
import numpy as np
import pytest

from dcn_jax.categories import Category
from dcn_jax.images.fit import resize, resize_labels
from dcn_jax.images.geometry import Geometry
from dcn_jax.images.palette import voc_palette
from dcn_jax.inference.label_map import ImageLabels
from dcn_jax.segmentation.records import LabelMaps
from tests.support.voc_folder import palette_png
from train.data import label_maps
from train.data.sets.palettes import colours_of

LABELS = np.arange(60, dtype=np.uint8).reshape(6, 10)


def encoded(pixels: np.ndarray, extension: str = ".png") -> bytes:
    return cv2.imencode(extension, pixels)[1].tobytes()


def test_every_value_survives():
    every = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(
        label_maps.decode(label_maps.encode(every), "a"), every
    )
    file = palette_png(every, voc_palette())
    found = label_maps.decode(file, "a", palette=voc_palette())
    np.testing.assert_array_equal(found, every)


def test_vocs_palette():
    """Colours that its page prints."""
    palette = voc_palette()
    assert palette[[0, 1, 2, 3, 8, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [64, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    assert len(np.unique(palette, axis=0)) == 256


def test_colours_of_categories():
    assert colours_of(["sky", "road"]).tolist() == [[70, 130, 180], [128, 64, 128]]
    expected = [[0, 0, 0], [128, 0, 0]]
    assert colours_of(["background", "person"]).tolist() == expected
    assert colours_of([]).shape == (0, 3)


def test_an_encoder_of_its_own_is_read():
    """As matplotlib's Pillow writes a palette, with transparency."""
    image = pytest.importorskip("PIL.Image").fromarray(LABELS % 21, mode="P")
    image.putpalette(voc_palette().ravel().tolist())
    stream = io.BytesIO()
    image.save(stream, "png", transparency=0)
    found = label_maps.decode(stream.getvalue(), "a", palette=voc_palette())
    np.testing.assert_array_equal(found, LABELS % 21)


def other_palette() -> np.ndarray:
    palette = voc_palette()
    palette[[7, 9]] = palette[[9, 7]]
    return palette


def flipped(file: bytes) -> bytes:
    """A bit of the pixels is another."""
    data = bytearray(file)
    data[data.index(b"IDAT") + 20] ^= 1
    return bytes(data)


REFUSED = {
    "a has another palette: its label 7 has the colour (192, 0, 0); expected (128, 128,"
    " 128)": palette_png(LABELS, other_palette()),
    "its label 1 has the colour (1, 1, 1); expected (128, 0, 0)": palette_png(
        LABELS, np.repeat(np.arange(256)[:, None], 3, 1)
    ),
    "its label 20 has no colour; expected (0, 64, 128)": palette_png(
        LABELS, voc_palette()[:20]
    ),
    "a is a PNG of gray values of 8 bits; expected a palette of 8": encoded(LABELS),
    "a is a PNG of colours of 8 bits; expected a palette": encoded(
        np.repeat(LABELS[..., None], 3, 2)
    ),
    "a is no PNG; expected one, whose values are exact": encoded(LABELS, ".jpg"),
    "a is not a JPEG or PNG image": b"GIF89a",
    "a is broken: it cannot be decoded": flipped(palette_png(LABELS, voc_palette())),
    "a has 6 x 10 pixels; at most 59 are allowed": palette_png(LABELS, voc_palette()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_other_files_get_one_line(message):
    most = 59 if "at most" in message else 60
    with pytest.raises(ValueError) as error:
        label_maps.decode(REFUSED[message], "a", most, palette=voc_palette())
    assert message in str(error.value) and str(error.value).isprintable()


def test_only_gray_of_8_bits_is_gray():
    for pixels, found in (
        (LABELS.astype(np.uint16), "gray values of 16 bits"),
        (np.repeat(LABELS[..., None], 3, 2), "colours of 8 bits"),
    ):
        with pytest.raises(ValueError, match=f"{found}; expected gray values of 8"):
            label_maps.decode(encoded(pixels), "a")


def test_labels_that_a_data_set_does_not_have():
    label_map = np.array([[0, 5, 255], [20, 21, 30]], np.uint8)
    message = "a has pixels of the label 21, which VOC does not have"
    with pytest.raises(ValueError, match=message):
        label_maps.check_labels(label_map, range(21), "a", "VOC")
    label_maps.check_labels(label_map[:1], range(21), "a", "VOC")


@pytest.mark.parametrize("size", [(6, 10), (3, 5), (12, 30), (7, 11), (1, 1), (5, 3)])
def test_resizing_takes_the_value_under_the_centre(size):
    resized = resize_labels(LABELS, size)
    assert resized.shape == size and resized.dtype == np.uint8
    for row in range(size[0]):
        for column in range(size[1]):
            y = int((row + 0.5) * 6 / size[0] + 1e-9)
            x = int((column + 0.5) * 10 / size[1] + 1e-9)
            assert resized[row, column] == LABELS[y, x]


def test_resized_labels_lie_where_the_resized_image_does():
    image = np.zeros((40, 64, 3), np.uint8)
    image[8:24, 16:48] = 255
    labels = (image[..., 0] > 0).astype(np.uint8)
    for size in ((20, 32), (60, 96), (33, 57)):
        bright = resize(image, size)[..., 0] > 127
        found = resize_labels(labels, size) == 1
        assert (bright != found).mean() < 0.02


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("size", "corner"), [((12, 20), (0, 0)), ((12, 20), (3, 7)), ((6, 10), (0, 0))]
)
def test_on_a_canvas(flip, size, corner):
    geometry = Geometry.of((6, 10), size, (8, 15), flip=flip, corner=corner)
    placed = label_maps.on_canvas(LABELS, geometry)
    assert placed.shape == (8, 15) and placed.dtype == np.uint8
    height, width = geometry.shown
    assert (height, width) == (
        min(8, size[0] - corner[0]),
        min(15, size[1] - corner[1]),
    )
    assert (placed[height:] == 255).all() and (placed[:, width:] == 255).all()
    for row in range(height):
        for column in range(width):
            y, x = row + corner[0], column + corner[1]
            x = size[1] - 1 - x if flip else x
            assert placed[row, column] == LABELS[y * 6 // size[0], x * 10 // size[1]]


def test_back_to_the_image():
    geometry = Geometry.of((6, 10), (12, 20), (16, 24))
    placed = label_maps.on_canvas(LABELS, geometry).astype(np.int32)
    categories = [Category(label, str(label)) for label in range(60)]
    found = ImageLabels.of(LabelMaps(placed), geometry, categories)
    np.testing.assert_array_equal(found.labels, LABELS)
