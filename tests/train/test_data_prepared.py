"""Prepared copies: current, whole, one of each, whatever happened before."""

import errno
import fcntl
import functools
import io
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tqdm import tqdm

from tests.support import coco_folder, launch
from train.data import make_source, train_loader
from train.data.sets import CocoInstances
from train.data.source import Source


@pytest.fixture
def folder(tmp_path) -> Path:
    coco_folder.write_coco_folder(tmp_path / "coco", "val")
    return tmp_path


def _open(folder: Path, /, **options) -> Source:
    options = {"split": "val", "folder": str(folder / "coco"), **options}
    return make_source("coco_instances", data_dir=folder / "data", **options)


def _copies(folder: Path) -> list[Path]:
    return sorted((folder / "data" / "coco_instances").iterdir())


def _records(folder: Path) -> Path:
    (copy,) = _copies(folder)
    (path,) = copy.rglob("*array_record*")
    return path


def _first_image(folder: Path) -> Path:
    return min((folder / "coco" / "val").iterdir())


def _made(folder: Path) -> dict[Path, int]:
    """The copies, and when their records were written: of each preparation another."""
    return {
        copy: max(path.stat().st_mtime_ns for path in copy.rglob("*array_record*"))
        for copy in _copies(folder)
    }


def _said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "train"]


def test_a_preparation_says_what_it_does_and_no_more(folder, caplog, capfd):
    caplog.set_level("INFO", logger="train")
    _open(folder)
    made = _copies(folder)[0]
    what, end = _said(caplog)
    assert what == f"preparing coco_instances of {folder}/coco, val: 8 images"
    assert re.fullmatch(rf"prepared in \d+\.\d s: 0\.\d MB in {made}", end)
    # Where no terminal is, no bar.
    assert capfd.readouterr() == ("", "")
    caplog.clear()
    _open(folder)
    assert _said(caplog) == []


def test_each_split_of_the_digits_is_said(tmp_path, caplog):
    caplog.set_level("INFO", logger="train")
    make_source("deformed_digits", "train", tmp_path, train_images=3, test_images=1)
    assert _said(caplog)[:2] == [
        "preparing deformed_digits, train: 3 images",
        "preparing deformed_digits, test: 1 image",
    ]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_bar_and_keeps_nothing_of_it(folder, monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    # Every step is drawn, however fast.
    eager = functools.partial(tqdm, mininterval=0, miniters=1)
    monkeypatch.setattr("train.data.progress.tqdm", eager)
    _open(folder)
    drawn = terminal.getvalue()
    assert "\n" not in drawn
    *steps, cleared, rest = drawn.split("\r")[1:]
    assert [re.findall(r"\d/\d", step) for step in steps] == [
        [f"{number}/8"] for number in range(9)
    ]
    assert all(step.startswith("preparing: ") for step in steps)
    assert not cleared.strip() and not rest


def test_what_did_not_change_is_not_prepared_again(folder):
    assert len(_open(folder)) == 8
    made = _made(folder)
    for _ in range(2):
        assert len(_open(folder)) == 8
    # Files that the JSON does not name do not matter.
    (folder / "coco" / "val" / "notes.txt").write_text("notes")
    assert len(_open(folder)) == 8
    assert len(made) == 1 and _made(folder) == made


def test_a_changed_json_is_prepared_anew_and_the_old_copy_removed(folder):
    path = folder / "coco/annotations/instances_val.json"
    content = json.loads(path.read_text())
    _open(folder)
    first = _copies(folder)
    content["images"].pop()
    content["annotations"] = []
    coco_folder.write_instances(folder / "coco", "val", content)
    again = _open(folder)
    assert len(again) == 7 and again.ground_truth()["annotations"] == []
    assert len(_copies(folder)) == 1 and _copies(folder) != first


def test_a_replaced_image_is_noticed(folder):
    assert _open(folder)[0].image.max() > 0
    path = _first_image(folder)
    black = np.zeros((96, 128, 3), np.uint8)
    path.write_bytes(cv2.imencode(".jpg", black)[1].tobytes())
    assert _open(folder)[0].image.max() == 0
    assert len(_copies(folder)) == 1
    # One of the same size in bytes, too.
    data = path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))
    first = _copies(folder)
    assert len(_open(folder)) == 8 and _copies(folder) != first
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path.name}: no such image file"):
        _open(folder)


def test_a_copy_that_is_read_is_not_removed(folder):
    reader = _open(folder)
    os.utime(_first_image(folder), ns=(0, 0))
    _open(folder)
    assert len(_copies(folder)) == 2
    assert reader[0].image.shape == (96, 128, 3)
    # In a worker too, which may outlive nothing.
    worker = pickle.loads(pickle.dumps(reader))
    assert worker[7].image_id == reader[7].image_id
    del reader, worker
    made = _made(folder)
    _open(folder)
    assert len(_made(folder)) == 1 and _made(folder).items() <= made.items()


def test_splits_and_options_have_copies_of_their_own(folder):
    shutil.copytree(folder / "coco", folder / "other")
    coco_folder.write_coco_folder(folder / "coco", "val2")
    for _ in range(2):
        _open(folder)
        _open(folder, upright=True)
        _open(folder, split="val2")
        _open(folder, folder=str(folder / "other"))
    assert len(_copies(folder)) == 4


def test_what_a_killed_preparation_left_is_removed(folder):
    root = folder / "data" / "coco_instances"
    _open(folder)
    (copy,) = _copies(folder)
    os.utime(_first_image(folder), ns=(0, 0))
    (root / "val2_01234567_89abcdef" / "incomplete.ABCDEF_2.0.0").mkdir(parents=True)
    (root / "val2_01234567_89abcdef/incomplete.ABCDEF_2.0.0/a").write_bytes(bytes(99))
    # It ended between the records and the manifest.
    base = copy.name.rpartition("_")[0]
    shutil.copytree(copy, root / f"{base}_00000000")
    (root / f"{base}_00000000" / "prepared.json").unlink()
    _open(folder)
    assert len(_copies(folder)) == 1


@pytest.mark.slow
def test_a_killed_preparation_is_done_again(folder):
    code = (
        "import os, sys; from train.data import prepared, make_source\n"
        "prepared._files = lambda folder: os._exit(9)\n"
        f"make_source('coco_instances', 'val', {str(folder / 'data')!r},"
        f" folder={str(folder / 'coco')!r})"
    )
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=launch.ROOT,
            env=launch.environment(),
            capture_output=True,
            check=False,
        )
        assert result.returncode == 9, result.stderr
        assert len(_copies(folder)) == 1
    assert len(_open(folder)) == 8
    assert len(_copies(folder)) == 1


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "records"])
@pytest.mark.parametrize("how", ["cut", "garbage", "gone", "empty", "digit"])
def test_a_damaged_copy_is_prepared_again(folder, caplog, name, how):
    truth = _open(folder).ground_truth()
    path = _records(folder)
    if name != "records":
        path = path.parent / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "digit" and name == "records":
        path.write_bytes(data + b"0")
    else:
        digit = re.search(rb"[1-8]", data)
        assert digit is not None
        changed = data[: digit.start()] + b"9" + data[digit.end() :]
        damage = {"cut": data[: len(data) // 2], "garbage": b'{"a', "empty": b""}
        path.write_bytes(damage.get(how, changed))
    assert _open(folder).ground_truth() == truth
    assert len(_copies(folder)) == 1


def test_a_copy_of_an_earlier_version_is_prepared_again(folder, caplog):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CocoInstances, "VERSION", tfds.core.Version("1.9.0"))
        assert len(_open(folder)) == 8
    assert [path.parent.name for path in [_records(folder)]] == ["1.9.0"]
    with caplog.at_level("WARNING", logger="train"):
        assert len(_open(folder)) == 8
    version = str(CocoInstances.VERSION)
    assert _records(folder).parent.name == version
    assert f"(it has no version {version}): it is prepared again" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"origin": 5, "files": []}', "\0"])
def test_a_damaged_manifest(folder, text):
    _open(folder)
    (_copies(folder)[0] / "prepared.json").write_text(text)
    assert len(_open(folder)) == 8
    assert len(_copies(folder)) == 1


def test_damaged_records_get_one_line_and_are_prepared_again(folder):
    source = _open(folder)
    path = _records(folder)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1  # behind the records are zeros, to the end of a block
    path.write_bytes(data)
    del source
    source = _open(folder)
    with pytest.raises(ValueError, match="prepared data set cannot be read: ") as error:
        source.ground_truth()
    text = str(error.value)
    assert text.isprintable() and text.endswith("when the run is started again)")
    settings = {"canvases": ((64, 64),), "short_sides": (48,), "max_side": 64}
    loader = train_loader(
        source,
        lambda example, geometry: {},
        index=np.arange(len(source)),
        batch_size=2,
        flip=False,
        seed=0,
        **settings,
    )
    with pytest.raises(ValueError, match="prepared data set cannot be read: "):
        for _ in range(20):
            next(loader)
    del source, loader
    assert len(_open(folder).ground_truth()["images"]) == 8


def test_digits_are_prepared_again(tmp_path):
    options: dict[str, Any] = {"train_images": 2, "test_images": 1}
    first = make_source("deformed_digits", "train", tmp_path, **options)
    image = first[0].image
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text("{")
    again = make_source("deformed_digits", "train", tmp_path, **options)
    np.testing.assert_array_equal(again[0].image, image)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError('Failed to finalize "val": write() failed:\nNo space left'),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_disk_that_is_full_gets_one_line(folder, monkeypatch, error):
    def full(self):
        raise error

    with monkeypatch.context() as patch:
        writer = "tensorflow_datasets.core.DatasetBuilder.download_and_prepare"
        patch.setattr(writer, full)
        with pytest.raises(OSError, match=r"cannot be prepared: .*No space") as raised:
            _open(folder)
    assert str(raised.value).isprintable()
    assert not list((folder / "data" / "coco_instances").glob("*"))
    assert len(_open(folder)) == 8


def test_a_small_disk(folder):
    """A limit on the size of files stands in for the disk's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be prepared: .*File too large"):
            _open(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((folder / "data" / "coco_instances").glob("*"))


def test_a_copy_on_a_read_only_disk_is_read(folder, monkeypatch):
    _open(folder)
    opened = Path.open

    def read_only(path, mode="r", *arguments, **options):
        if "w" in mode:
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", read_only)
    assert _open(folder)[0].image.shape == (96, 128, 3)
    os.utime(_first_image(folder), ns=(0, 0))
    with pytest.raises(
        OSError, match=r"/data: the data set cannot be .* Read-only file"
    ):
        _open(folder)


def test_preparations_wait_for_each_other(folder):
    (folder / "data").mkdir()
    thread = threading.Thread(target=_open, args=(folder,))
    with (folder / "data" / ".coco_instances.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert not (folder / "data" / "coco_instances").exists()
    thread.join(60)
    assert len(_copies(folder)) == 1
