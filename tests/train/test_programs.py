"""What the programs of train do, called in this process."""

import json
import logging
import shutil

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from dcn_jax.modules import DeformConv
from tests.support import double
from tests.train.test_checkpoint import rewrite
from tests.train.test_first_paper_run import filters_by_object
from train import effective_dilation, evaluate, inputs, loop, predict, sharding
from train.checkpoint import read_arrays
from train.configs import coco_faster_rcnn, digits
from train.evaluator import Evaluator
from train.metrics import read_metrics
from train.skeleton import build_skeleton
from train.tasks.segmentation import Segmentation
from train.workdir import claim

TASK = double.DetectionDouble()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration and folder of a short run of the double."""
    folder = tmp_path_factory.mktemp("run")
    config = digits.get_config()
    config.update_from_flattened_dict(
        {
            "steps": 4,
            # optax's Adam does not run under the tests' strict promotion of types.
            "optim.name": "sgd",
            "data.data_dir": str(folder / "data"),
            "data.options.train_images": 8,
            "data.options.test_images": 8,
            "log.every": 2,
            "log.offset_health_every": 0,
            "checkpoint.every": 2,
            "eval.batch_size": 8,
            "eval.every": 0,
            "eval.pictures": 0,
        }
    )
    loop.train(config, folder / "run", TASK)
    return config, folder / "run"


def changed(config, fields):
    """A configuration with other values in some fields."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture
def said(caplog, monkeypatch):
    """Returns what was logged, as one text."""
    monkeypatch.setattr(logging.getLogger("train"), "propagate", True)
    caplog.set_level("INFO", logger="train")
    return lambda: "\n".join(r.getMessage() for r in caplog.records)


def test_evaluate_repeats_the_evaluation_of_the_run(trained):
    config, workdir = trained
    written = (workdir / "evaluation.json").read_text()
    (workdir / "evaluation.json").unlink()
    evaluate.evaluate_run(config, workdir, TASK)
    again = json.loads((workdir / "evaluation.json").read_text())
    first = json.loads(written)
    assert again["step"] == first["step"] == 4
    assert again["bbox"] == pytest.approx(first["bbox"])


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (100, 0, [100]),
        (100, 30, [30, 60, 90, 100]),
        (100, 1, list(range(1, 101))),
        (16, 0.125, [2, 4, 6, 8, 10, 12, 14, 16]),
        (100, 0.125, [13, 25, 38, 50, 63, 75, 88, 100]),
        (90_001, 0.25, [22_501, 45_001, 67_501, 90_001]),
        # Fewer steps than there would be evaluations.
        (3, 0.125, [1, 2, 3]),
        (100, 101, [100]),
    ],
)
def test_when_a_run_is_evaluated(steps, every, expected):
    due = [s for s in range(steps + 1) if loop.evaluation_due(s, steps, every)]
    assert due == expected
    # Of a checkpoint beyond the end.
    assert loop.evaluation_due(steps + 1, steps, every)


class Diverging(double.TinyDetector):
    def losses(self, batch, key):
        return {n: v * jnp.nan for n, v in super().losses(batch, key).items()}


def test_a_run_that_only_skips_ends(trained, tmp_path, said):
    config = changed(trained[0], {"steps": 5})
    task = double.DetectionDouble(Diverging)
    with pytest.raises(ValueError, match=r"The last 5 steps, up to step 5, .*diverged"):
        loop.train(config, tmp_path, task)
    assert "WARNING: the last 4 steps were all skipped, as loss or gradient" in said()
    # The warm-up of the demo's recipe is longer than this run.
    assert (
        "WARNING: the learning rate never reaches `optim.lr`, 0.001: in the 5 steps of "
        "the run it is 0.000127 at most (`optim.warmup_steps` is 100, "
    ) in said()
    records = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert records == [2, 4, 5]


def test_evaluate_says_of_what_and_writes_elsewhere(trained, tmp_path):
    config, workdir = trained
    config = changed(config, {"data.eval_split": "train"})
    written = (workdir / "evaluation.json").read_text()
    output = tmp_path / "new" / "train"
    evaluate.evaluate_run(config, workdir, TASK, output)
    assert (workdir / "evaluation.json").read_text() == written
    assert json.loads(written)["data"]["split"] == "test"
    assert json.loads((output / "evaluation.json").read_text())["data"] == {
        "name": "deformed_digits",
        "split": "train",
        "options": config.data.options.to_dict(),
        "images": 8,
    }
    assert (output / "detections.json").exists()


@pytest.fixture
def predict_with(trained, tmp_path):
    """Predicts with the short run; returns what predictions.json then says."""

    def call(files, score=0.0, config=trained[0]):
        output = tmp_path / "out"
        files = [str(file) for file in files]
        predict.predict_files(config, trained[1], TASK, files, output, score)
        return written(output)

    return call


def written(output):
    return json.loads((output / "predictions.json").read_text())


def test_predict_draws_and_lists_in_pixels_of_the_file(predict_with, tmp_path):
    paths = []
    for name, shape in (("wide.jpg", (90, 300, 3)), ("tall.png", (500, 40, 3))):
        path = tmp_path / name
        cv2.imwrite(str(path), np.full(shape, 90, np.uint8))
        paths.append(str(path))
    found, output = predict_with(paths), tmp_path / "out"
    # The double finds two things in every image, each as large as the image.
    assert [f["file_name"] for f in found] == [paths[0]] * 2 + [paths[1]] * 2
    assert found[0]["bbox"] == pytest.approx([0, 0, 300, 90], rel=1e-3)
    assert found[2]["bbox"] == pytest.approx([0, 0, 40, 500], rel=1e-3)
    assert found[0]["label"] in "0123456789" and 0 < found[0]["score"] <= 1
    assert found[0]["category_id"] == int(found[0]["label"]) + 1
    assert cv2.imread(str(output / "000_wide.png")).shape == (512, 1707, 3)
    assert cv2.imread(str(output / "001_tall.png")).shape == (2048, 164, 3)


def test_predict_turns_a_photograph_upright(predict_with, tmp_path, said):
    """Exif orientation 6: the camera was held upright."""
    encoded = cv2.imencode(".jpg", np.zeros((40, 80, 3), np.uint8))[1].tobytes()
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded[:2] + segment + encoded[2:])
    found = predict_with([path])
    assert f"{path} is turned as its orientation tag (6) says" in said()
    assert found[0]["bbox"] == pytest.approx([0, 0, 40, 80], rel=1e-3)


@pytest.fixture
def pictures(tmp_path):
    """A folder with a good and a broken image, and files that are none."""
    folder = tmp_path / "pictures"
    (folder / "inner.jpg").mkdir(parents=True)
    cv2.imwrite(str(folder / "good.PNG"), np.zeros((30, 30, 3), np.uint8))
    encoded = cv2.imencode(".jpg", np.zeros((99, 99, 3)))[1].tobytes()
    (folder / "broken.jpg").write_bytes(encoded[:200])
    (folder / "notes.txt").touch()
    (folder / "._good.jpg").touch()
    return folder


def test_a_broken_file_loses_nothing_that_was_found(predict_with, pictures, tmp_path):
    output = tmp_path / "out"
    good, broken = str(pictures / "good.PNG"), str(pictures / "broken.jpg")
    with pytest.raises(ValueError, match=r"2 of 4 images .*broken\.jpg.* 1 more"):
        predict_with([good, broken, good, broken])
    found = written(output)
    assert [f["file_name"] for f in found] == [good] * 4
    drawn = {path.name for path in output.glob("*.png")}
    assert drawn == {"000_good.png", "002_good.png"}


def test_a_picture_that_cannot_be_written_loses_nothing(
    predict_with, pictures, tmp_path
):
    output = tmp_path / "out"
    (output / "000_good.png").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"1 of 1 images failed: .*000_good\.png"):
        predict_with([pictures / "good.PNG"])
    assert len(written(output)) == 2


def test_a_folder_stands_for_its_images(pictures, monkeypatch, said):
    monkeypatch.setenv("HOME", str(pictures.parent))
    names = ["broken.jpg", "good.PNG"]
    found = predict.image_files(["~/pictures/good.PNG", str(pictures)])
    assert found == [str(pictures / name) for name in ["good.PNG", *names]]
    assert "left out 1 files that are no JPEG or PNG by their names" in said()
    assert "such as notes.txt" in said()
    with pytest.raises(ValueError, match=r"inner\.jpg has no image file"):
        predict.image_files([str(pictures / "inner.jpg")])


def test_a_long_name_is_cut_in_the_picture(predict_with, tmp_path):
    path = tmp_path / ("ü" * 123 + ".jpg")
    path.write_bytes(cv2.imencode(".jpg", np.zeros((30, 30, 3)))[1].tobytes())
    predict_with([path])
    assert (tmp_path / "out" / f"000_{'ü' * 100}.png").exists()


def test_predict_refuses_what_is_wrong_at_once(predict_with, trained, pictures):
    good = pictures / "good.PNG"
    with pytest.raises(FileNotFoundError, match=r"nothing\.jpg"):
        predict_with([good, pictures / "nothing.jpg"])
    with pytest.raises(ValueError, match="image files"):
        predict_with([])
    for score in (50, float("nan")):
        with pytest.raises(
            ValueError, match=f"`--score` is {score}; expected .* 0 to 1"
        ):
            predict_with([good], score)
    small = changed(trained[0], {"data.max_pixels": 800})
    with pytest.raises(ValueError, match=r"30 x 30 pixels; at most 800"):
        predict_with([good], config=small)


def test_a_checkpoint_of_another_model_is_refused(trained):
    config, workdir = trained
    for fields, message in (
        (
            {"model.backbone.mask_scale": 2},
            r"`model.backbone.mask_scale` was 1",
        ),
        ({"task": "other"}, r"`task` was detection, the configuration says other"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.evaluate_run(changed(config, fields), workdir, TASK)


def test_a_checkpoint_of_other_categories_is_refused(trained, tmp_path):
    config, straight = trained
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)

    def swap(description):
        categories = description["categories"]
        categories[0], categories[1] = categories[1::-1]

    rewrite(workdir / "checkpoints" / "4", swap)
    for program in (evaluate.evaluate_run, loop.train):
        with pytest.raises(
            ValueError, match=r"\(id, name\) to differ was \(2, '1'\), now \(1, '0'\)"
        ):
            program(config, workdir, TASK)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optim.name", "adamw", "`optim.name` is 'adamw'; .* trained with 'sgd'"),
        (
            "model.backbone.frozen_stages",
            1,
            "frozen_stages` is 1; .* with 0",
        ),
        ("optim.lr_multipliers", ((r"^head", 0.0),), r"such as head\.bias"),
    ],
)
def test_a_run_goes_on_with_the_same_optimiser(trained, field, value, message):
    config, workdir = trained
    with pytest.raises(ValueError, match=message):
        loop.train(changed(config, {field: value}), workdir, TASK)


def flip_a_byte(workdir, step):
    """Damages the newest checkpoint where only its digests tell."""
    path = workdir / "checkpoints" / str(step) / "place" / "metadata"
    text = path.read_bytes()
    path.write_bytes(text.replace(b"4", b"5", 1))
    assert path.read_bytes() != text


def test_a_run_goes_on_from_the_newest_sound_checkpoint(trained, tmp_path, caplog):
    config, straight = trained
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    flip_a_byte(workdir, 4)
    damaged = r"checkpoints/4 is damaged: 'place/metadata' has other bytes.* step 2 is"
    with pytest.raises(ValueError, match=damaged):
        evaluate.evaluate_run(config, workdir, TASK)
    picture = str(straight / "curves.png")
    with pytest.raises(ValueError, match=damaged):
        predict.predict_files(config, workdir, TASK, [picture], tmp_path / "out", 0.5)
    with caplog.at_level("INFO", logger="train"):
        loop.train(config, workdir, TASK)
    assert "the checkpoint of step 4 is damaged" in caplog.text
    assert "going on from the checkpoint of step 2" in caplog.text
    kept = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert kept == {"2", "4", "4.damaged"}
    first, again = (
        read_arrays(folder / "checkpoints" / "4") for folder in (straight, workdir)
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    caplog.clear()
    with caplog.at_level("INFO", logger="train"):
        evaluate.evaluate_run(config, workdir, TASK)
    assert "using the checkpoint of step 4" in caplog.text


def test_a_changed_run_goes_on_and_says_so(trained, tmp_path, caplog):
    config, straight = trained
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    other = changed(
        config,
        {
            "steps": 5,
            "batch_size": 16,
            "data.canvases": ((64, 64),),
            "data.short_sides": (48,),
            "data.eval_short_side": 64,
            "optim.lr": 0.002,
        },
    )
    with caplog.at_level("INFO", logger="train"):
        loop.train(other, workdir, TASK)
    said = [m for m in caplog.messages if "not as in the checkpoint" in m]
    assert len(said) == 1
    for change in (
        "the run had 4 steps, has 5",
        f"`batch_size` was {config.batch_size}, is 16",
        "`data.canvases` was [[",
        "is [[64, 64]]",
        f"`optim.lr` was {config.optim.lr}, is 0.002",
        "`steps` was 4, is 5",
    ):
        assert change in said[0]
    steps = [r["step"] for r in read_metrics(workdir / "metrics.jsonl")]
    assert steps == [2, 4, 5, 5]
    other.steps = 3
    with caplog.at_level("WARNING", logger="train"):
        loop.train(other, workdir, TASK)
    assert "step 5 is beyond the run's 3 steps" in caplog.text


def test_a_folder_in_use_is_refused(trained):
    config, straight = trained
    with claim(straight), pytest.raises(ValueError, match="in use by another run"):
        loop.train(config, straight, TASK)


@pytest.mark.parametrize("program", [evaluate, effective_dilation])
def test_evaluate_refuses_arguments(program):
    with pytest.raises(ValueError, match=r"Unexpected arguments: a\.jpg"):
        program.main(["a.jpg"], TASK)


class Rigid(double.TinyDetector):
    """The same network, which records no samples."""

    def features(self, images, sizes):
        return self.backbone.conv1(images.astype(jnp.float32) / 255)


def test_effective_dilation_wants_offsets_and_boxes(trained, tmp_path):
    config, workdir = trained
    measure = effective_dilation.measure_run
    with pytest.raises(ValueError, match=r"^The network has no deformable convolution"):
        measure(config, workdir, double.DetectionDouble(Rigid), tmp_path)
    config = changed(config, {"task": "segmentation"})
    with pytest.raises(ValueError, match=r"^`task` is 'segmentation', .* has no boxes"):
        measure(config, workdir, Segmentation(), tmp_path)
    assert not list(tmp_path.iterdir())


class Deformable(double.TinyDetector):
    """The same network, with a deformable convolution whose offsets are zero."""

    def __init__(self, num_classes, rngs):
        super().__init__(num_classes, rngs)
        self.conv = DeformConv(3, 4, (3, 3), strides=16, padding=1, rngs=rngs)

    def features(self, images, sizes):
        return self.conv(images.astype(jnp.float32) / 255)


def test_effective_dilation_counts_each_filter_once(
    trained, tmp_path, monkeypatch, capsys
):
    # Half of the rows of its one batch only complete it.
    config = changed(trained[0], {"eval.batch_size": 16})
    task = double.DetectionDouble(Deformable)
    skeleton = build_skeleton(config, task, 10)
    loaded = 4, skeleton, skeleton.init(0), {}
    monkeypatch.setattr(effective_dilation, "load_variables", lambda *_: loaded)
    effective_dilation.measure_run(config, trained[1], task, tmp_path, (32, 96))
    record = json.loads((tmp_path / "effective_dilation.json").read_text())
    layer = record["layers"].pop("conv")
    assert not record["layers"] and layer.pop("name") is None
    counts = {group: numbers["count"] for group, numbers in layer.items()}
    truth = inputs.open_source(config, task, "test").ground_truth()
    assert counts == filters_by_object(truth, side=256)
    assert sum(counts.values()) == 8 * 16**2
    for numbers in layer.values():
        if numbers["count"]:
            assert numbers["mean"] == pytest.approx(1)
            assert numbers["deviation"] == pytest.approx(0, abs=1e-6)
    assert f"1.00 ± 0.00 ({counts['medium']})" in capsys.readouterr().out


def test_effective_dilation_refuses_wrong_bounds():
    assert effective_dilation.size_bounds(["96", "224.5"]) == (96, 224.5)
    for given in (["32"], ["96", "32"], ["0", "32"], ["a", "b"], ["1", "nan"]):
        with pytest.raises(ValueError, match=r"^`--size_bounds` is .*; expected two"):
            effective_dilation.size_bounds(given)


def test_layers_are_called_as_in_the_papers():
    name = effective_dilation.paper_name
    names = {
        "trunk.backbone.layer4.2.conv2": "res5c",
        "layer3.22.conv2": "res4b22",
        "layer2.0.conv2": "res3a",
        "layer2.3.conv2": "res3b3",
        "layer1.2.conv2": "res2c",
        "trunk.backbone.layer4.2.conv1": None,
        "mylayer4.2.conv2": None,
    }
    deep = ["trunk.backbone.layer3.6.conv1.kernel", "layer3.6.conv1.kernel"]
    assert {path: name(path, deep) for path in names} == names
    assert name("layer3.5.conv2", ["layer3.5.conv1.kernel"]) == "res4f"


def test_evaluate_refuses_a_batch_that_does_not_divide(trained):
    config, workdir = trained
    odd = changed(config, {"eval.batch_size": 9})
    with pytest.raises(ValueError, match=r"`eval\.batch_size` is 9; expected"):
        evaluate.evaluate_run(odd, workdir, TASK)


def test_a_run_without_checkpoint_is_refused(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        evaluate.evaluate_run(trained[0], tmp_path, TASK)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no finished checkpoint in"):
        evaluate.evaluate_run(trained[0], tmp_path, TASK)


def test_output_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with flagsaver.flagsaver(output="~/out"):
        assert evaluate.output_folder() == tmp_path / "out"
    assert evaluate.output_folder() is None


class Empty:
    """A split without boxes."""

    num_boxes = np.zeros(3, np.int64)

    def __len__(self):
        return 3


def test_a_split_without_boxes_is_said(said):
    config = coco_faster_rcnn.get_config()
    message = r"'train2017' .* no ground truth to .* its 3 images"
    with pytest.raises(ValueError, match=message):
        inputs.open_train_loader(config, TASK, Empty())
    skeleton = build_skeleton(config, TASK, 3)
    Evaluator(config, TASK, skeleton, sharding.make_mesh(), Empty())
    assert "WARNING: the split 'val2017' has no ground truth to find" in said()
