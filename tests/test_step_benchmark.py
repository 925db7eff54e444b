"""The benchmark of a train step and a detection: all of it that needs no torch."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.detection.records import Detections
from dcn_jax.explain.capture import capture_samples
from scripts.benchmark import ops, step
from scripts.benchmark.markdown import replace_family
from scripts.benchmark.timing import family
from scripts.benchmark.twin_worker import (
    PARTS,
    TwinWorker,
    check_detections,
    check_losses,
    twin_tensors,
)
from scripts.benchmark.typical_weights import make_typical
from tests.support import fake_twin
from tests.support.tiny_detector import make_detector
from train.skeleton import build_skeleton
from train.tasks import TASKS


@pytest.fixture
def twin(tmp_path, monkeypatch):
    """A worker whose program finds modules of torch's names, which hold versions."""
    for name in ("torch", "torchvision"):
        (tmp_path / f"{name}.py").write_text(f"__version__ = '1.2 of {name}'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with TwinWorker(sys.executable, 2, program=fake_twin.__name__) as worker:
        yield worker


def tiny_config(row):
    """A row's, with few of everything."""
    config = step.row_config(row)
    model = config.model
    model.backbone.update({"depths": (1, 1, 1, 1), "stem_features": 8})
    model.neck.features = 8
    model.rpn.update({"features": 8, "anchor_sizes": (16, 32)})
    for selection in (model.rpn.train, model.rpn.test):
        selection.update({"pre_nms_top_n": 60, "post_nms_top_n": 20})
    model.pool.output_size = 3
    model.box.features = 16
    model.sampling.samples = 12
    return config


def zeros_of(row):
    """A network's variables, without the memory for them."""
    config = step.row_config(row)
    skeleton = build_skeleton(config, TASKS[config.task], 80)
    return {
        path: np.broadcast_to(np.float32(0), leaf.shape)
        for path, leaf in skeleton.variables.items()
    }


@pytest.mark.parametrize("row", step.TWINS)
def test_every_variable_has_a_counterpart(row):
    variables = zeros_of(row)
    tensors = twin_tensors(variables)
    assert len(tensors) == len(variables)
    shapes = {
        "body.conv1.weight": (64, 3, 7, 7),
        "body.bn1.running_var": (64,),
        "body.layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "reduction.weight": (256, 2048, 1, 1),
        "rpn.head.conv.0.0.weight": (512, 1024, 3, 3),
        "rpn.head.bbox_pred.weight": (60, 512, 1, 1),
        "roi_heads.box_head.fc6.weight": (1024, 256 * 49),
        "roi_heads.box_predictor.cls_score.weight": (81, 1024),
        "roi_heads.box_predictor.bbox_pred.weight": (4 * 81, 1024),
    }
    if row == "dcnv2":
        shapes |= {
            "body.layer2.0.conv2.conv_offset.weight": (27, 128, 3, 3),
            "roi_heads.box_roi_pool.fc1.weight": (1024, 256 * 49),
            "roi_heads.box_roi_pool.offset_fc.weight": (3 * 49, 1024),
        }
    assert {name: tensors[name].shape for name in shapes} == shapes
    assert ("body.layer2.0.conv2.conv_offset.bias" in tensors) == (row == "dcnv2")


def test_mimicking_has_no_counterpart():
    paths = ("trunk.neck.reduction.bias", "mimic.classifier.bias")
    with pytest.raises(ValueError, match=r"nothing like mimic\.classifier\.bias"):
        twin_tensors({path: np.zeros(4, np.float32) for path in paths})


def test_a_twin_is_spoken_to(twin):
    assert twin.versions() == {
        "torch": "1.2 of torch",
        "torchvision": "1.2 of torchvision",
    }
    with pytest.raises(RuntimeError, match="dcnv2: there is no such row"):
        twin.time("dcnv2", "detection")
    config, batch = step.row_config("dcnv2"), step.random_batch(1, (64, 96))
    variables = {"trunk.neck.reduction.bias": np.full(4, 0.5, np.float32)}
    twin.load("dcnv2", config, 80, variables, batch)
    for part in PARTS:
        assert twin.time("dcnv2", part) == fake_twin.SECONDS[part]
    assert twin.losses("dcnv2") == {"box": config.optim.lr, "class": 2.0}
    found = twin.detections("dcnv2")
    np.testing.assert_array_equal(found["boxes"], batch.boxes[0])
    np.testing.assert_array_equal(found["labels"], batch.labels[0])


def detections(boxes, scores, labels, valid):
    return Detections(
        boxes=jnp.asarray([boxes], jnp.float32),
        scores=jnp.asarray([scores], jnp.float32),
        labels=jnp.asarray([labels], jnp.int32),
        valid=jnp.asarray([valid]),
    )


def test_detections_must_be_the_same():
    boxes = np.arange(40, dtype=np.float32).reshape(10, 4) * 10
    scores, labels = np.linspace(0.9, 0.1, 10), np.arange(1, 11)
    ours = detections(boxes, scores, labels, [True] * 10)
    order = np.arange(10)[::-1]  # Equal scores may come in any order.

    def theirs(boxes=boxes, scores=scores, labels=labels):
        return dict(boxes=boxes[order], scores=scores[order], labels=labels[order])

    check_detections("row", ours, theirs(boxes + 0.5, scores + 0.001))
    one_other = np.where(labels == 3, 50, labels)
    check_detections("row", ours, theirs(labels=one_other))
    two_others = np.where(labels < 3, 50, labels)
    for wrong in (
        theirs(boxes + 3),
        theirs(scores=scores + 0.05),
        theirs(labels=two_others),
        {name: values[:5] for name, values in theirs().items()},
    ):
        with pytest.raises(ValueError, match=r"row: of 10 detections, .* expected 90%"):
            check_detections("row", ours, wrong)
    fewer = detections(boxes, scores, labels, [True] * 5 + [False] * 5)
    with pytest.raises(ValueError, match="of 10 detections, 5 are"):
        check_detections("row", fewer, theirs())


def test_losses_must_be_alike():
    ours = {"class": 2.0, "box": 0.1, "loss": 2.1}
    check_losses("row", ours, {"class": 2.5, "box": 0.09})
    for wrong in ({"class": 0.9}, {"box": 0.5}, {"box": float("nan")}):
        with pytest.raises(ValueError, match=r"row: the loss '(class|box)' is"):
            check_losses("row", ours, wrong)


@pytest.mark.slow
def test_typical_weights_move_samples_and_find_something():
    deformed = dict(norm="frozen_bn", deform_blocks=(0, 0, -1, -1))
    model = make_detector(backbone=deformed)
    batch = step.random_batch(1, (64, 96))
    images, sizes = batch.images, batch.sizes
    graph, state = nnx.split(model)

    @jax.jit
    def typical(state):
        model = nnx.merge(graph, state)
        make_typical(model, images, sizes, jax.random.key(0))
        return nnx.state(model)

    nnx.update(model, typical(state))

    @jax.jit
    def predicted(state):
        model = nnx.merge(graph, state)
        records = capture_samples(model, lambda model: model.predict(images, sizes))
        return model.predict(images, sizes), [r.samples["offset"] for r in records]

    found, offsets = predicted(nnx.state(model))
    assert len(offsets) == 2
    for offset in offsets:
        np.testing.assert_allclose(np.std(offset), 2, rtol=1e-3)
    assert found.valid.sum() > 3
    norm = model.trunk.backbone.layer3[0].norm1
    assert float(norm.var[...].max()) != 1


def test_small_offsets_are_a_tenth_and_nothing_else_changes():
    names = ("layer2.0.conv2.offset_conv.kernel", "layer2.0.conv2.kernel")
    ones = {name: np.ones(2, np.float32) for name in names}
    calm = step.with_small_offsets(ones)
    np.testing.assert_allclose(calm[names[0]], 0.1)
    np.testing.assert_array_equal(calm[names[1]], 1)
    assert list(calm) == list(names)


SECONDS = [
    {
        "ours regular, train step": ours,
        "ours regular, detection": 1.0,
        "ours dcnv2, train step": 2 * ours,
        "torchvision regular, train step": theirs,
        "torchvision dcnv2, train step": 10.0,
        "ours dcnv2_mimic, train step": 3 * ours,
    }
    for ours, theirs in ((1.0, 1.0), (2.0, 1.0), (9.0, 3.0))
]
MEMORY = {"regular": 2**30, "dcnv2": 2**31, "dcnv2_mimic": 2**32}


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return {row[0]: dict(zip(split[0][1:], row[1:], strict=True)) for row in split[2:]}


def test_ratios_are_taken_within_a_round():
    text = step.table("On it", "So.", step.ROWS, step.Measured(SECONDS, MEMORY))
    assert text.startswith("### On it\n\nSo.\n\n| seconds | ours |")
    found = cells(text)
    assert list(found) == [
        "regular, train step",
        "regular, detection",
        "dcnv2, train step",
        "dcnv2_mimic, train step",
    ]
    assert found["dcnv2, train step"] == {
        "ours": "4.00",
        "torchvision": "10.00",
        "ours / torchvision": "0.40",
        "ours / torchvision's regular": "4.00",
        "ours / our regular": "2.00",
        "ours / our dcnv2": "",
        "temporary memory, GiB": "2.0",
    }
    mimic = found["dcnv2_mimic, train step"]
    assert (mimic["torchvision"], mimic["ours / our dcnv2"]) == ("", "1.50")
    assert found["regular, detection"]["temporary memory, GiB"] == ""


def test_without_torch_its_columns_are_left_out():
    rounds = [
        {name: t for name, t in found.items() if name.startswith("ours")}
        for found in SECONDS
    ]
    text = step.table("On it", "So.", step.ROWS, step.Measured(rounds, MEMORY))
    assert "torchvision" not in text
    assert cells(text)["dcnv2, train step"]["ours / our regular"] == "2.00"


def test_the_document_keeps_tables_of_other_processors(tmp_path):
    text = ops.DOCUMENT.read_text()
    begin = "<!-- benchmark step, {}: begin -->".format
    families = re.findall(r"<!-- benchmark step, (.*): begin -->", text)
    assert len(families) >= 2
    copy = tmp_path / "copy.md"
    copy.write_text(text)
    known, *others = families
    replace_family(copy, "first \\1", "step", known)
    replace_family(copy, "new", "step", "Other avx1024")
    replace_family(copy, "newer", "step", "Other avx1024")
    found = copy.read_text()
    assert f"{begin(known)}\n\nfirst \\1\n\n<!--" in found
    assert f"{begin('Other avx1024')}\n\nnewer\n\n<!--" in found
    for other in others:
        kept = text.split(begin(other))[1].split("<!--")[0]
        assert found.split(begin(other))[1].startswith(kept)
    # Nothing stands outside of the benchmark's place.
    last = "<!-- benchmark step: end -->"
    assert text.split(last)[1] == found.split(last)[1]
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="has 0 of <!-- benchmark step: end -->"):
        replace_family(copy, "text", "step", "AMD avx2")


def test_the_family_of_the_processor_is_known():
    assert re.fullmatch(r"\S+ (baseline|avx2|avx512)", family())


@pytest.mark.slow
def test_networks_are_measured_and_a_wrong_twin_is_refused(twin):
    batch = step.random_batch(1, (64, 96))
    rows = ("dcnv2", "dcnv2_mimic")
    configs = {row: tiny_config(row) for row in rows}
    configs["dcnv2_mimic"].model.mimic.update({"count": 2, "crop_size": 32})
    measured = step.measure(configs, batch, steps=2)
    assert len(measured.rounds) == 2
    assert set(measured.rounds[0]) == {
        "ours dcnv2, train step",
        "ours dcnv2, detection",
        "ours dcnv2_mimic, train step",
    }
    assert min(measured.rounds[1].values()) > 0
    assert set(measured.memory) == set(rows)
    # It has the ground truth for its detections.
    with pytest.raises(ValueError, match=r"dcnv2: of .* detections, .* are ours"):
        step.measure({"dcnv2": configs["dcnv2"]}, batch, 1, twin)
