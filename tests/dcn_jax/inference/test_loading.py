"""Networks from a run's file, and from an export in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from dcn_jax.images import drawing
from dcn_jax.images.fit import resize_labels
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.inference import Detector, Segmenter
from dcn_jax.inference.exported import read_export
from dcn_jax.weights.safetensors_file import read_safetensors, write_safetensors
from tests.support.run_files import CATEGORIES, SMALL, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The network of a detector, and the folder of the run that left it."""
    folder = tmp_path_factory.mktemp("run")
    told = dict(categories=CATEGORIES, preprocessing=SMALL)
    return write_run(folder, "class_aware_rpn", **told), folder


def pictures():
    rng = np.random.default_rng(0)
    sizes = ((48, 48), (96, 160))
    return [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]


def test_it_finds_what_the_network_predicts(run):
    network, folder = run
    detector = Detector.load(folder)
    assert detector.categories == CATEGORIES and detector.preprocessing == SMALL
    (small, wide), image = detector.detect(pictures()), pictures()[0]
    canvas = np.zeros((1, 48, 80, 3), np.uint8)
    canvas[0, :48, :48] = image
    expected = nnx.jit(type(network).predict)(network, canvas, np.int32([[48, 48]]))
    assert len(small) == int(expected.valid.sum()) > 0
    np.testing.assert_array_equal(small.boxes, expected.boxes[expected.valid])
    np.testing.assert_array_equal(small.scores, expected.scores[expected.valid])
    np.testing.assert_array_equal(small.labels, expected.labels[expected.valid])
    assert wide.size == (96, 160) and wide.boxes[:, 2].max() > 80


_SERVE = """
import sys
import numpy as np
from dcn_jax import Detector
pictures = np.load(sys.argv[2])
detector = Detector.from_export(sys.argv[1])
found = detector.detect([pictures["small"], pictures["wide"]])
names = [name for one in found for name in one.names]
fields = {f"{n}{i}": getattr(one, n) for i, one in enumerate(found)
          for n in ("boxes", "scores", "labels")}
assert not {"train", "orbax.checkpoint", "tensorflow_datasets"} & set(sys.modules)
np.savez(sys.argv[3], names=names, **fields)
"""


def test_an_export_is_served_by_the_library_alone(run, tmp_path):
    pytest.importorskip("flatbuffers")
    _, folder = run
    detector = Detector.load(folder)
    detector.export(tmp_path / "detector.export")
    small, wide = pictures()
    np.savez(tmp_path / "pictures.npz", small=small, wide=wide)
    files = ("detector.export", "pictures.npz", "found.npz")
    root = Path(__file__).resolve().parent.parent.parent.parent
    subprocess.run(
        [sys.executable, "-c", _SERVE, *(str(tmp_path / name) for name in files)],
        env=dict(os.environ, PYTHONPATH=str(root)),
        cwd=tmp_path,
        check=True,
    )
    with np.load(tmp_path / "found.npz") as there:
        here = detector.detect([small, wide])
        assert there["names"].tolist() == [n for found in here for n in found.names]
        for i, found in enumerate(here):
            for name in ("boxes", "scores", "labels"):
                np.testing.assert_array_equal(there[f"{name}{i}"], getattr(found, name))


def test_exports_that_are_none(run, tmp_path):
    pytest.importorskip("flatbuffers")
    _, folder = run
    with pytest.raises(ValueError, match=r"is no export of a detector"):
        Detector.from_export(folder / "detector.safetensors")
    detector = Detector.load(
        folder, preprocessing=Preprocessing(((48, 48),), short_side=48, max_side=48)
    )
    for wrong in ((), ("cpu", "abacus"), "cpu"):
        with pytest.raises(ValueError, match="`platforms` is"):
            detector.export(tmp_path / "a", platforms=wrong)
    path = tmp_path / "a.export"
    detector.export(path)
    with pytest.raises(ValueError, match="is no export of a segmenter"):
        Segmenter.from_export(path)
    loaded = Detector.from_export(path)
    with pytest.raises(ValueError, match="cannot be exported again"):
        loaded.export(tmp_path / "b.export")
    tensors, texts = read_safetensors(path)
    program = tensors["program 48x48"]
    broken = {
        "program": (tensors | {"program 48x48": program[:50]}, texts),
        "programs take": (tensors | {"more": program}, texts),
        "no program": ({n: t for n, t in tensors.items() if "program" not in n}, texts),
        "category": (tensors, texts | {"categories": '[{"id": "x"}]'}),
        "preprocessing": (tensors, texts | {"preprocessing": '{"canvases": [[1, 0]]}'}),
    }
    for what, (changed, words) in broken.items():
        write_safetensors(path, changed, words)
        with pytest.raises(ValueError, match=rf"a\.export': .*{what.split()[-1]}"):
            read_export(path, "detector")


def test_a_segmenter_labels_pixels(tmp_path):
    told = dict(categories=CATEGORIES, preprocessing=SMALL)
    network = write_run(tmp_path, "deeplab", **told)
    segmenter = Segmenter.load(tmp_path)
    image = pictures()[1]
    (found,) = segmenter.segment([image])
    assert found.labels.shape == found.size == (96, 160)
    canvas = SMALL(image)[0][None]
    predict = nnx.jit(type(network).predict)
    labels = predict(network, canvas, np.int32([[48, 80]])).labels[0]
    np.testing.assert_array_equal(found.labels[::2, ::2], labels)
    picture, large = segmenter.draw(image), drawing.enlarged(image)
    assert picture.shape == large.shape == (512, 853, 3)
    second = resize_labels(found.labels, (512, 853)) == 1
    assert second.any()
    tinted = large[second] * 0.4 + np.array([1, 2, 3]) * 0.6
    # But where the name stands.
    right = (np.abs(picture[second] - tinted) <= 1).all(-1)
    assert right.mean() > 0.5
    with pytest.raises(ValueError, match=r"load it by `dcn_jax\.Segmenter`"):
        Detector.load(tmp_path / "segmenter.safetensors")
    with pytest.raises(ValueError, match=r"load it by `dcn_jax\.Segmenter`"):
        Detector.load(tmp_path)


def test_names_and_preprocessing_of_files_without_them(tmp_path):
    write_run(tmp_path, "class_aware_rpn")
    path = tmp_path / "detector.safetensors"
    with pytest.raises(ValueError, match=r"does not say how .*; expected `preproc"):
        Detector.load(path)
    detector = Detector.load(path, preprocessing=SMALL)
    assert [c.name for c in detector.categories] == ["class 1", "class 2", "class 3"]
    named = Detector.load(tmp_path, names=["a", "b", "c"], preprocessing=SMALL)
    assert [c.name for c in named.categories] == ["a", "b", "c"]
    for names in (["a", "b"], "abc"):
        with pytest.raises(ValueError, match=r"`names` is .*; expected 3 names"):
            Detector.load(tmp_path, names=names, preprocessing=SMALL)


def test_what_cannot_be_loaded(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no detector\.safetensors"):
        Detector.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Detector.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"by `dcn_jax\.Detector`"):
        Segmenter.load(run[1] / "detector.safetensors")
    tensors, texts = read_safetensors(run[1] / "detector.safetensors")
    path = tmp_path / "a.safetensors"
    for name, text, match in (
        ("categories", "[]", "0 categories, and its network 3 classes"),
        ("categories", "{", "its categories are no JSON"),
        ("categories", "3", "its categories are 3"),
        ("categories", '[{"id": 1, "name": "a", "colour": [1, 2, 256]}]', "a colour"),
        ("preprocessing", "[" * 10**5, "its preprocessing is no JSON"),
        ("preprocessing", "[]", r"its preprocessing is \[\]"),
        ("preprocessing", '{"sides": 3}', "unexpected keyword"),
        ("preprocessing", '{"short_side": 0}', "`short_side` is 0"),
        ("preprocessing", '{"canvases": [[9000, 9000]]}', "one of 81000000 pixels"),
    ):
        write_safetensors(path, tensors, texts | {name: text})
        with pytest.raises(ValueError, match=rf"a\.safetensors.*{match}"):
            Detector.load(path)
