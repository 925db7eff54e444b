"""The real detector on a COCO folder, from the command line to COCO AP."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dcn_jax import Detector
from dcn_jax.backbones import ResNet
from dcn_jax.weights import import_detector
from dcn_jax.weights.detector import variables_of
from tests.support import launch
from tests.support.coco_folder import write_coco_folder
from train.checkpoint import read_arrays
from train.evaluation.coco_results import coco_results
from train.metrics import read_metrics

TINY = {
    "steps": 3,
    "batch_size": 2,
    "data.train_split": "train",
    "data.eval_split": "val",
    "data.canvases": ((64, 64),),
    "data.short_sides": (48,),
    "data.eval_short_side": 48,
    "data.max_side": 64,
    "data.max_boxes": 8,
    "model.backbone.depths": (1, 1, 1, 1),
    "model.backbone.stem_features": 8,
    "model.backbone.deform_blocks": (0, 0, 0, -1),
    "model.neck.features": 8,
    "model.rpn.anchor_sizes": (16.0, 32.0),
    "model.rpn.features": 8,
    "model.rpn.train.pre_nms_top_n": 32,
    "model.rpn.train.post_nms_top_n": 8,
    "model.rpn.test.pre_nms_top_n": 32,
    "model.rpn.test.post_nms_top_n": 8,
    "model.pool.hidden_features": 8,
    "model.pool.output_size": 3,
    "model.box.features": 16,
    "model.sampling.samples": 8,
    "model.selection.max_detections": 10,
    "model.mimic.count": 2,
    "model.mimic.crop_size": 32,
    "optim.lr": 0.002,
    "log.every": 1,
    "log.offset_health_every": 0,
    # As `Detector` does: other batches are rounded otherwise.
    "eval.batch_size": 1,
    "eval.every": 0,
    "eval.pictures": 1,
}


# Ours -> torchvision's.
NAMES = {
    "norm": "bn",
    "downsample_conv": "downsample.0",
    "downsample_bn": "downsample.1",
    ".kernel": ".weight",
    ".scale": ".weight",
    ".mean": ".running_mean",
    ".var": ".running_var",
}


def torchvision_weights():
    """Tensors by torchvision's names, which fit the tiny backbone."""
    fields = ("depths", "stem_features")
    sizes = {name: TINY[f"model.backbone.{name}"] for name in fields}
    model = nnx.eval_shape(lambda: ResNet(**sizes, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        name = ".".join(map(str, path))
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        shape = variable.get_value().shape
        if len(shape) == 4:
            tensor = rng.normal(0, 0.1, [shape[i] for i in (3, 2, 0, 1)])
        else:
            tensor = rng.uniform(0.5, 1.5, shape)
        tensors[name] = tensor.astype(np.float32)
    return tensors


def start(coco, data, workdir, *flags):
    """Starts the training of the tiny detector on a COCO folder."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "train.main"),
            "--config=train/configs/coco_faster_rcnn.py",
            f"--config.data.options.folder={coco}",
            f"--config.data.data_dir={data}",
            f"--workdir={workdir}",
            *(f"--config.{field}={value}" for field, value in TINY.items()),
            *flags,
        ],
        cwd=launch.ROOT,
        env=launch.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a COCO folder, and weights, in it."""
    folder = tmp_path_factory.mktemp("coco_run")
    for split in ("train", "val"):
        write_coco_folder(folder / "coco", split)
    save_file(torchvision_weights(), folder / "resnet.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Trains; returns (folder of the run, exit status, stderr)."""
    weights = f"--config.init_from={folder / 'resnet.safetensors'}"
    workdir = folder / "run"
    process = start(folder / "coco", folder / "data", workdir, weights)
    return workdir, *launch.finish(process, 900)


def test_it_trains_and_evaluates(run):
    workdir, status, errors = run
    assert status == 0, errors
    records = read_metrics(workdir / "metrics.jsonl")
    losses = {name for name in records[0] if name.startswith("loss/")}
    assert losses == {
        *("loss/rpn_class", "loss/rpn_box", "loss/class", "loss/box"),
        *("loss/mimic_class", "loss/mimic_cos"),
    }
    assert [r["skipped"] for r in records[:3]] == [0, 0, 0]
    result = json.loads((workdir / "evaluation.json").read_text())
    assert set(result["bbox_per_class"]) == {"disc", "square", "triangle"}
    assert result["bbox"]["AP"] is not None
    assert (workdir / "pictures" / "grid.png").exists()


def test_it_starts_from_the_weights(run):
    workdir, _, _ = run
    arrays = read_arrays(workdir / "checkpoints" / "3")
    found = {name.split("'")[1]: array for name, array in arrays.items() if "'" in name}
    tensors = torchvision_weights()
    # The first two stages and the norms stay as they were.
    for ours, theirs in {
        "trunk.backbone.conv1.kernel": "conv1.weight",
        "trunk.backbone.layer1.0.conv2.kernel": "layer1.0.conv2.weight",
        "trunk.backbone.norm1.mean": "bn1.running_mean",
        "trunk.backbone.layer4.0.downsample_norm.var": (
            "layer4.0.downsample.1.running_var"
        ),
    }.items():
        tensor = tensors[theirs]
        expected = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        np.testing.assert_array_equal(found[ours], expected, err_msg=ours)
    # A trained kernel started there too: three steps at a small rate move it little.
    expected = tensors["layer3.0.conv2.weight"].transpose(2, 3, 1, 0)
    moved = np.abs(found["trunk.backbone.layer3.0.conv2.kernel"] - expected).max()
    assert 0 < moved < 0.05


def test_it_leaves_the_network(run):
    workdir, _, _ = run
    arrays = read_arrays(workdir / "checkpoints" / "3")
    names = {n.split("'")[1]: n for n in arrays if n.startswith("model[")}
    network = import_detector(workdir / "detector.safetensors")
    found = variables_of(network)
    assert found.keys() == names.keys() and network.roi.num_classes == 3
    for name, value in found.items():
        np.testing.assert_array_equal(value, arrays[names[name]], err_msg=name)


def test_the_detector_finds_what_was_evaluated(run, folder, tmp_path):
    """To the bit; and so does train.predict, which needs the folder alone."""
    workdir, _, _ = run
    val = folder / "coco" / "val"
    evaluated = json.loads((workdir / "detections.json").read_text())
    instances = folder / "coco" / "annotations" / "instances_val.json"
    ids = {
        str(val / image["file_name"]): image["id"]
        for image in json.loads(instances.read_text())["images"]
    }
    found = Detector.load(workdir).detect(list(ids))
    expected = {i: [r for r in evaluated if r["image_id"] == i] for i in ids.values()}
    assert expected == {
        i: [{"image_id": i, **result} for result in coco_results(one)]
        for i, one in zip(ids.values(), found, strict=True)
    }
    (tmp_path / "broken.jpg").write_bytes(b"none")
    output = tmp_path / "out"
    program = subprocess.run(
        [
            *(sys.executable, "-m", "train.predict", f"--workdir={workdir}"),
            *("--score=0", f"--output={output}", str(tmp_path), str(val)),
        ],
        cwd=launch.ROOT,
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert program.returncode == 1 and "broken.jpg is not a JPEG" in program.stderr
    predicted = json.loads((output / "predictions.json").read_text())
    for record in predicted:
        assert record.pop("label") in {"disc", "square", "triangle"}
        record["image_id"] = ids[record.pop("file_name")]
    assert expected == {
        i: [r for r in predicted if r["image_id"] == i] for i in ids.values()
    }


def test_bad_input_gets_one_line(run, folder, tmp_path):
    good = folder / "coco"
    broken = shutil.copytree(good, tmp_path / "broken")
    image = next((broken / "train").iterdir())
    image.write_bytes(image.read_bytes()[:300])
    unknown = shutil.copytree(good, tmp_path / "unknown")
    instances = unknown / "annotations" / "instances_train.json"
    content = json.loads(instances.read_text())
    content["annotations"][0]["category_id"] = 4
    instances.write_text(json.dumps(content))

    missing, data = tmp_path / "missing", tmp_path / "data"
    # One for each, as a work folder takes one run at a time.
    new = [tmp_path / f"run{i}" for i in range(4)]
    cap, scale = "--config.data.max_pixels=9000", "--config.model.backbone.mask_scale=2"
    weights = f"--config.init_from={folder / 'resnet.safetensors'}"
    cases = [
        (start(missing, data, new[0], weights), "missing': no such folder"),
        (
            start(broken, data, new[1], weights),
            f"{image.name} is not a JPEG or PNG image, or its header is broken",
        ),
        (
            start(unknown, data, new[2], weights),
            "annotation 1007: unknown category id 4",
        ),
        (start(good, data, new[3], weights, cap), "at most 9000 are allowed"),
        (
            start(good, folder / "data", run[0], scale),
            "`model.backbone.mask_scale` was",
        ),
    ]
    for process, message in cases:
        status, errors = launch.finish(process)
        assert status == 1, errors
        assert "Traceback" not in errors
        last = errors.strip().splitlines()[-1]
        assert last.startswith("error: ") and message in last, errors
