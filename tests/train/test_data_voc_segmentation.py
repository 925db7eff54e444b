"""VOC's and SBD's label maps are read faithfully; flaws get one clear line."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy import io

from dcn_jax.images.files import read_image
from dcn_jax.images.palette import voc_palette
from tests.support import voc_folder
from train.data import make_source
from train.data.sets import mat_files
from train.data.source import Source


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("voc")
    voc_folder.write_voc_folder(where / "VOCdevkit")
    voc_folder.write_sbd_folder(where / "dataset")
    return where


@pytest.fixture
def where(written, tmp_path) -> Path:
    """A copy of one's own."""
    return shutil.copytree(written, tmp_path / "own")


def _open(where: Path, split: str = "2012_train+sbd", **options) -> Source:
    options = {"sbd": str(where / "dataset"), **options}
    folder = str(where / "VOCdevkit")
    return make_source(
        "voc_segmentation", split, where / "data", folder=folder, **options
    )


@pytest.mark.parametrize("split", ["2012_trainval", "2007_trainval+2012_val"])
def test_labels_are_the_files(written, split):
    source = _open(written, split)
    names = source.ground_truth()["images"]
    for row, image in enumerate(names):
        year, name = image["file_name"].split("/")[0], Path(image["file_name"]).stem
        size, shapes = voc_folder.IMAGES[int(year.removeprefix("VOC"))][name]
        expected = voc_folder.label_map(size, shapes)
        example = source[row]
        np.testing.assert_array_equal(example.label_map, expected)
        np.testing.assert_array_equal(source.label_map(example.image_id), expected)
        assert example.image.shape == (*size, 3)
        assert source.labelled[row] == (expected != 255).sum() < expected.size
    assert [c["name"] for c in source.categories[:2]] == ["background", "aeroplane"]
    assert [c["id"] for c in source.categories] == list(range(21))


def test_sbd_is_joined_without_what_voc_holds_back(written):
    """(VOC 2012's train or SBD) without VOC 2012's val."""
    source = _open(written)
    files = [image["file_name"] for image in source.ground_truth()["images"]]
    assert files == [
        "VOC2012/JPEGImages/2008_000002.jpg",
        "img/2009_000001.jpg",
        "img/2009_000002.jpg",
    ]
    # What both label has VOC's labels, with borders.
    assert (source[0].label_map == 255).any()
    size, shapes = voc_folder.sbd_image("2009_000001")
    expected = voc_folder.label_map(size, shapes, border=False)
    np.testing.assert_array_equal(source[1].label_map, expected)
    assert len(_open(written, "sbd")) == 3
    assert (_open(written, "sbd")[0].label_map != 255).all()
    assert len(_open(written, "2012_train")) == 1


def test_images_are_read_where_they_lie(where):
    """Of VOC and of SBD, which have folders of their own."""
    source = _open(where)
    paths = [
        where / "VOCdevkit/VOC2012/JPEGImages/2008_000002.jpg",
        where / "dataset/img/2009_000001.jpg",
    ]
    for row, path in enumerate(paths):
        np.testing.assert_array_equal(source[row].image, read_image(path))
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"{path.name}: no such image"):
            source[row]


def test_a_missing_sbd_file_gets_one_line(where):
    (where / "dataset/cls/2009_000001.mat").unlink()
    with pytest.raises(FileNotFoundError) as error:
        _open(where)
    assert str(error.value) == (
        f"{where}/dataset/cls/2009_000001.mat: no such label file of SBD"
    )
    # It is not read where the split does not name it.
    assert len(_open(where, "2012_train")) == 1


def test_missing_places(where):
    with pytest.raises(ValueError, match="and `sbd` is ''; expected SBD's folder"):
        _open(where, sbd="")
    with pytest.raises(FileNotFoundError, match="`sbd` '/no/such': no such folder"):
        _open(where, sbd="/no/such")
    with pytest.raises(ValueError, match=r"`split` is '2012_train\+ssbd'; expected"):
        _open(where, "2012_train+ssbd")
    (where / "dataset/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset/val\.txt: no such list"):
        _open(where)


def test_all_mistakes_are_said_at_once(where):
    root = where / "VOCdevkit/VOC2012/SegmentationClass"
    labels = np.zeros((60, 90), np.uint8)
    labels[:5] = 1
    gray = np.repeat(np.arange(256)[:, None], 3, 1)
    (root / "2008_000002.png").write_bytes(voc_folder.palette_png(labels, gray))
    labels[:5] = 37
    (root / "2008_000003.png").write_bytes(
        voc_folder.palette_png(labels, voc_palette())
    )
    (root / "2011_000015.png").write_bytes(
        voc_folder.palette_png(labels[:59] * 0, voc_palette())
    )
    with pytest.raises(ValueError) as error:
        _open(where, "2012_trainval")
    text = str(error.value)
    assert text.startswith(f"{where}/VOCdevkit: 3 mistakes: VOC2012/SegmentationClass/")
    for said in (
        "2008_000002.png has another palette: its label 1 has the colour (1, 1, 1); ex",
        "2008_000003.png has pixels of the label 37, which VOC does not have",
        "2011_000015.png has (height, width) (59, 90); its image has (60, 90)",
    ):
        assert said in text
    assert text.isprintable()


def test_what_changes_is_prepared_anew(where):
    assert _open(where)[1].label_map.max() == 18
    path = where / "dataset/cls/2009_000001.mat"
    voc_folder.write_mat(path, np.full((60, 90), 7, np.uint8))
    assert _open(where)[1].label_map.min() == 7
    labels = np.full((60, 90), 21, np.uint8)
    voc_folder.write_mat(path, labels)
    with pytest.raises(
        ValueError, match=r"2009_000001\.mat has pixels of the label 21"
    ):
        _open(where)


LABELS = (np.arange(35) % 21).astype(np.uint8).reshape(5, 7)


def _read(data: bytes, most: int = 2**20) -> np.ndarray:
    return mat_files.read_field(data, "a.mat", "GTcls", "Segmentation", max_bytes=most)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1, :3], LABELS.astype(float)])
def test_a_matrix_of_a_structure(tmp_path, compress, labels):
    path = tmp_path / "a.mat"
    voc_folder.write_mat(path, labels, compress=compress)
    found = _read(path.read_bytes())
    np.testing.assert_array_equal(found, labels)
    truth = io.loadmat(path)["GTcls"]["Segmentation"][0, 0]
    np.testing.assert_array_equal(found, truth)


def _saved(tmp_path, content, **options) -> bytes:
    io.savemat(tmp_path / "b.mat", content, **options)
    return (tmp_path / "b.mat").read_bytes()


def test_other_mat_files_get_one_line(tmp_path):
    good = _saved(tmp_path, {"GTcls": {"Segmentation": LABELS}})
    cases = {
        "it has no variable GTcls": _saved(tmp_path, {"other": LABELS}),
        "its variable is no structure": _saved(tmp_path, {"GTcls": LABELS}),
        "has no field Segmentation": _saved(tmp_path, {"GTcls": {"a": LABELS}}),
        "is no real matrix": _saved(tmp_path, {"GTcls": {"Segmentation": "abc"}}),
        "it is not of version 5": _saved(tmp_path, {"GTcls": LABELS}, format="4"),
        "it is cut short": good[:-9],
        "version 5, little": b"",
        "it unpacks to more than 1048576 bytes": good[:128] + _packed(bytes(10**8)),
    }
    for message, data in cases.items():
        with pytest.raises(ValueError) as error:
            _read(data)
        text = str(error.value)
        assert text.startswith("a.mat cannot be read as a MATLAB file: ")
        assert message in text and text.isprintable()


def _packed(content: bytes) -> bytes:
    packed = zlib.compress(content)
    return struct.pack("<II", 15, len(packed)) + packed


@pytest.mark.parametrize("compress", [False, True])
def test_damaged_mat_files_are_refused_or_read(tmp_path, compress):
    """No more, and no other exception, whatever the bytes say."""
    voc_folder.write_mat(tmp_path / "a.mat", LABELS, compress=compress)
    good = (tmp_path / "a.mat").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        data = bytearray(good)
        for place in rng.integers(124, len(data), int(rng.integers(1, 4))):
            data[place] = rng.choice([0, 1, 255, int(rng.integers(256))])
        try:
            found = _read(bytes(data[: rng.integers(130, len(data) + 1)]))
            assert found.ndim == 2 and found.nbytes < 2**20
        except ValueError as error:
            refused += 1
            assert (
                str(error).startswith("a.mat cannot be read") and len(str(error)) < 200
            )
    assert refused > 100


def test_nested_elements_are_not_followed():
    """SciPy's reader would call itself for each, deeper than the stack is."""
    count = 30_000
    deep = b"".join(struct.pack("<II", 14, 8 * (count - k - 1)) for k in range(count))
    structure = (
        struct.pack("<IIII", 6, 8, 2, 0)
        + struct.pack("<IIii", 5, 8, 1, 1)
        + struct.pack("<II5s3x", 1, 5, b"GTcls")
        + struct.pack("<HHI", 5, 4, 32)
        + struct.pack("<II32s", 1, 32, b"Segmentation")
        + deep
    )
    element = struct.pack("<II", 14, len(structure)) + structure
    with pytest.raises(ValueError, match="cannot be read as a MATLAB file: "):
        _read(bytes(124) + b"\x00\x01IM" + element)


@pytest.mark.parametrize("kind", ["pipe", "holes"])
def test_label_files_are_regular_and_of_a_sane_size(where, kind):
    for path in (
        where / "VOCdevkit/VOC2012/SegmentationClass/2008_000002.png",
        where / "dataset/cls/2009_000001.mat",
    ):
        kept = path.read_bytes()
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.touch()
            os.truncate(path, 10**10)
        with pytest.raises(
            ValueError, match=rf"{path.name}' (is a pipe|has 100000000)"
        ):
            _open(where)
        path.unlink()
        path.write_bytes(kept)
    assert len(_open(where)) == 3
