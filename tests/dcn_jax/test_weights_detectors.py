"""Detectors under other people's names: what is told from names and shapes."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.boxes import BoxCode
from dcn_jax.modules import DeformRoIPoolByLevel, RoIAlign
from dcn_jax.weights import (
    export_weights,
    import_detector,
    init_from,
    read_detector,
    read_state_dict,
)
from dcn_jax.weights.detector import missing_variables, variables_of
from dcn_jax.weights.detector_file import detector_in
from dcn_jax.weights.state_dict import WeightFile
from dcn_jax.weights.torch_writer import write_pth
from tests.support import owner_networks as owners
from tests.support.owner_networks import R50, R101, X101_32X4D, X101_32X8D, Body
from tests.support.torch_files import write_pth as write_any

V1, V2 = 18, 27
# What the owner's library counts: tensors, parameters.
SIZES = {
    "torchvision faster": (owners.torchvision(), 348, 41_755_286),
    "torchvision faster, published": (
        owners.torchvision(old=True, counted=False),
        295,
        None,
    ),
    "torchvision mask": (owners.torchvision(masks=True), 360, 44_401_393),
    "torchvision mask, published": (
        owners.torchvision(masks=True, old=True, counted=False),
        307,
        None,
    ),
    "mmdetection faster": (owners.mmdetection(), 348, 41_753_056),
    "mmdetection faster dconv": (
        owners.mmdetection(R50._replace(branch=V1)),
        374,
        42_333_898,
    ),
    "mmdetection faster mdconv": (
        owners.mmdetection(R50._replace(branch=V2)),
        374,
        42_624_319,
    ),
    "mmdetection faster mdconv of 4 groups": (
        owners.mmdetection(R50._replace(branch=4 * V2)),
        374,
        45_238_108,
    ),
    "mmdetection dpool": (owners.mmdetection(pool="dpool"), 372, 97_737_576),
    "mmdetection mdpool": (owners.mmdetection(pool="mdpool"), 388, 149_322_796),
    "mmdetection mask mdconv": (
        owners.mmdetection(R50._replace(branch=V2), masks=True),
        386,
        45_267_599,
    ),
    "mmdetection mask R101 dconv": (
        owners.mmdetection(R101._replace(branch=V1), masks=True),
        726,
        64_674_636,
    ),
    "mmdetection faster X101-32x4d dconv": (
        owners.mmdetection(X101_32X4D._replace(branch=V1)),
        714,
        62_945_532,
    ),
    "mmdetection mask X101-32x8d": (
        owners.mmdetection(X101_32X8D, masks=True),
        666,
        107_630_640,
    ),
    "detectron2 faster": (owners.detectron2(), 295, 41_699_936),
    "detectron2 mask": (owners.detectron2(masks=True), 307, 44_343_216),
    "detectron2 mask dconv": (
        owners.detectron2(R50._replace(branch=V1), masks=True),
        333,
        44_924_058,
    ),
    "detectron2 faster X101-32x8d": (owners.detectron2(X101_32X8D), 550, 104_784_480),
}


def detector_of(tensors, texts=None):
    detector = detector_in(WeightFile(tensors, texts or {}), "'file'")
    assert detector is not None
    return detector


# Deeper ones, and those with much in them, are made by the same rows.
SLOW = re.compile(r".*(101|published|groups|faster$)")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if SLOW.match(name) else [])
        for name in SIZES
    ],
)
def test_every_tensor_finds_its_place(name):
    shapes, count, parameters = SIZES[name]
    assert len(shapes) == count
    if parameters is not None:
        frozen = not name.startswith("mmdetection")
        assert owners.num_parameters(shapes, frozen=frozen) == parameters
    detector = detector_of(owners.zeros(shapes))
    assert detector.owner == name.split()[0]
    assert detector.unused == ()
    assert len(detector.variables) + len(detector.ignored) == count
    assert all(name.endswith("num_batches_tracked") for name in detector.ignored)
    assert detector.arguments["num_classes"] == 80
    assert missing_variables(detector) == ()


TINY = Body((1, 2, 1, 1), stem=8)
FEW: dict[str, Any] = dict(width=8, hidden=16)


def tiny(owner, body=TINY, **kwargs):
    """Random tensors of a tiny detector."""
    return owners.random(getattr(owners, owner)(body, **FEW, **kwargs))


ROUND_TRIPS = {
    "torchvision": tiny("torchvision", classes=4, masks=True),
    "mmdetection mdconv": tiny(
        "mmdetection", TINY._replace(branch=2 * V2), classes=3, masks=True
    ),
    "mmdetection mdpool": tiny("mmdetection", classes=3, pool="mdpool"),
    "mmdetection groups": tiny(
        "mmdetection", TINY._replace(groups=4, width_per_group=16, branch=V1), classes=3
    ),
}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, "pth") for name in ROUND_TRIPS),
        ("mmdetection mdconv", "safetensors"),
    ],
)
def test_in_and_out_and_in(tmp_path, name, suffix):
    source, target = tmp_path / "in.pth", tmp_path / f"out.{suffix}"
    tensors = ROUND_TRIPS[name]
    write_pth(source, tensors)
    model = import_detector(source)
    owner = name.split()[0]
    export_weights(model, target, to=owner)
    written = read_state_dict(target)
    assert set(written) == {n for n in tensors if "num_batches" not in n}
    for key, value in written.items():
        expected = np.array(tensors[key])
        if owner == "torchvision" and "bbox_pred" in key and "roi_heads" in key:
            expected[:4] = 0
        if owner == "torchvision" and "mask_fcn_logits" in key:
            expected[:1] = 0
        np.testing.assert_array_equal(value, expected)
    again = variables_of(import_detector(target))
    for path, value in variables_of(model).items():
        np.testing.assert_array_equal(again[path], value)


def test_both_generations_of_torchvisions_names(tmp_path):
    new = tiny("torchvision", masks=True, classes=4)
    old = dict(
        zip(
            owners.torchvision(TINY, old=True, masks=True, classes=4, **FEW),
            new.values(),
            strict=True,
        )
    )
    models = []
    for name, tensors in (("new", new), ("old", old)):
        write_pth(tmp_path / name, tensors)
        detector = read_detector(tmp_path / name)
        models.append(detector.variables)
        epsilon = detector.arguments["backbone"]["norm_epsilon"]
        assert epsilon == (0.0 if name == "old" else 1e-5)
    assert models[0].keys() == models[1].keys()
    for path, value in models[0].items():
        np.testing.assert_array_equal(models[1][path], value)
    write_pth(tmp_path / "both", old | new)
    with pytest.raises(ValueError, match="are two names of one tensor"):
        read_detector(tmp_path / "both")


def test_the_slots_of_unused_coco_ids_are_left_out(tmp_path):
    tensors = tiny("torchvision", masks=True)
    predictor = "roi_heads.box_predictor."
    tensors[f"{predictor}cls_score.bias"] = np.arange(91, dtype=np.float32)
    tensors[f"{predictor}bbox_pred.bias"] = np.repeat(
        np.arange(91, dtype=np.float32), 4
    )
    mask = "roi_heads.mask_predictor.mask_fcn_logits.bias"
    tensors[mask] = np.arange(91, dtype=np.float32)
    write_pth(tmp_path / "a.pth", tensors)
    variables = read_detector(tmp_path / "a.pth").variables
    ids = variables["roi.classifier.bias"].astype(int).tolist()
    assert len(ids) == 81 and ids[:3] == [0, 1, 2] and ids[-1] == 90
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(ids)
    assert variables["mask.predictor.bias"].astype(int).tolist() == ids[1:]
    boxes = variables["roi.regressor.bias"].reshape(80, 4)
    np.testing.assert_array_equal(boxes[:, 0], ids[1:])


def test_where_the_background_is():
    for owner, background in (("mmdetection", 3), ("detectron2", 3)):
        tensors = tiny(owner, classes=3)
        name = "roi_head.bbox_head.fc_cls.bias"
        if owner == "detectron2":
            name = "roi_heads.box_predictor.cls_score.bias"
        tensors[name] = np.arange(4, dtype=np.float32)
        detector = detector_of(tensors)
        ours = detector.variables["roi.classifier.bias"]
        np.testing.assert_array_equal(ours, [background, 0, 1, 2])


def test_transposed_convolutions_are_torchs():
    tensors = tiny("mmdetection", masks=True)
    detector = detector_of(tensors)
    kernel = detector.variables["mask.deconv.kernel"]
    theirs = tensors["roi_head.mask_head.upsample.weight"]
    layer = nnx.ConvTranspose(
        8, 8, (2, 2), strides=(2, 2), padding="VALID", rngs=nnx.Rngs(0)
    )
    layer.kernel[...] = jnp.asarray(kernel)
    x = np.random.default_rng(1).standard_normal((1, 2, 3, 8)).astype(np.float32)
    # Every pixel makes a square of its own.
    expected = np.einsum("nhwc,ckij->nhiwjk", x, theirs).reshape(1, 4, 6, 8)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)


def test_flattened_maps_and_offsets_of_pooling():
    tensors = tiny("mmdetection", pool="mdpool")
    variables = detector_of(tensors).variables
    layer = "roi_head.bbox_roi_extractor.roi_layers.2."
    pooled = np.random.default_rng(0).standard_normal((5, 7, 7, 8)).astype(np.float32)
    theirs = pooled.transpose(0, 3, 1, 2).reshape(5, -1)
    for ours, name in (
        ("roi.fc6", "roi_head.bbox_head.shared_fcs.0"),
        ("roi.pool.branches.2.offset_fc1", f"{layer}offset_fc.0"),
        ("roi.pool.branches.2.mask_fc1", f"{layer}mask_fc.0"),
    ):
        np.testing.assert_allclose(
            pooled.reshape(5, -1) @ variables[f"{ours}.kernel"],
            theirs @ tensors[f"{name}.weight"].T,
            atol=1e-3,
        )
    # Theirs are all x, then all y.
    x, y = tensors[f"{layer}offset_fc.4.bias"].reshape(2, 7, 7)
    ours = variables["roi.pool.branches.2.offset_fc3.bias"].reshape(7, 7, 2)
    np.testing.assert_array_equal(ours, np.stack([y, x], -1))


def test_what_the_owners_do_and_no_tensor_tells():
    ours = detector_of(owners.zeros(SIZES["torchvision mask, published"][0])).arguments
    assert ours["backbone"]["norm_epsilon"] == 0
    assert ours["rpn"]["strides_of_canvas"] and ours["rpn"]["round_anchors"]
    assert ours["pool"] == dict(output_size=7, sampling_ratio=2, aligned=False)
    assert ours["mask"]["num_convs"] == 4 and not ours["mask"]["binary_targets"]
    ours = detector_of(owners.zeros(SIZES["detectron2 mask dconv"][0])).arguments
    assert ours["backbone"]["stride_in_1x1"]
    assert ours["backbone"]["deform_blocks"] == (0, -1, -1, -1)
    assert not ours["backbone"]["modulated"]
    assert ours["trunk"]["pixel_std"] == (1, 1, 1)
    assert ours["trunk"]["pixel_mean"] == (123.675, 116.28, 103.53)
    ours = detector_of(owners.zeros(SIZES["detectron2 faster X101-32x8d"][0])).arguments
    assert not ours["backbone"]["stride_in_1x1"]
    assert ours["trunk"]["pixel_std"] == (58.395, 57.12, 57.375)
    ours = detector_of(
        owners.zeros(SIZES["mmdetection faster mdconv of 4 groups"][0])
    ).arguments
    assert ours["backbone"]["modulated"] and ours["backbone"]["offset_groups"] == 4
    assert ours["rpn"]["code"] == BoxCode(clamp_shrinking=True)
    assert ours["box"]["code"].clamp_shrinking and ours["pool_layer"] is RoIAlign
    ours = detector_of(owners.zeros(SIZES["mmdetection mdpool"][0])).arguments
    assert ours["pool_layer"] is DeformRoIPoolByLevel
    assert ours["pool"] == dict(
        output_size=7, hidden_features=1024, modulated=True, sampling_ratio=0
    )


def test_ninety_classes_of_ones_own_are_kept(tmp_path):
    tensors = tiny("torchvision", classes=91)
    bias = "roi_heads.box_predictor.cls_score.bias"
    tensors[bias] = np.arange(91, dtype=np.float32)
    write_any(tmp_path / "a.pth", tensors)
    detector = read_detector(tmp_path / "a.pth", coco_ids=False)
    assert detector.arguments["num_classes"] == 90
    found = detector.variables["roi.classifier.bias"]
    np.testing.assert_array_equal(found, tensors[bias])
    # A detector of 90 classes says so itself.
    model = import_detector(tmp_path / "a.pth", coco_ids=False)
    report = init_from(model, tmp_path / "a.pth")
    assert not report.restarted and bias in report.loaded


def test_blue_comes_first_in_some_networks(tmp_path):
    tensors = tiny("detectron2", classes=3)
    tensors["pixel_mean"] = np.asarray([[[1.0]], [[2.0]], [[3.0]]], np.float32)
    tensors["pixel_std"] = np.asarray([[[4.0]], [[5.0]], [[6.0]]], np.float32)
    write_any(tmp_path / "a.pth", {"model": tensors, "iteration": 3})
    detector = read_detector(tmp_path / "a.pth")
    assert set(detector.ignored) == {"pixel_mean", "pixel_std"}
    assert detector.arguments["trunk"]["pixel_mean"] == (3, 2, 1)
    assert detector.arguments["trunk"]["pixel_std"] == (6, 5, 4)
    theirs = tensors["backbone.bottom_up.stem.conv1.weight"]
    np.testing.assert_array_equal(
        detector.variables["trunk.backbone.conv1.kernel"],
        theirs.transpose(2, 3, 1, 0)[:, :, ::-1],
    )


@pytest.mark.parametrize(
    "text",
    [
        "img_norm_cfg = dict(\n mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], "
        "to_rgb=False)\nbackbone=dict(style='caffe')",
        "data_preprocessor=dict(bgr_to_rgb=False, mean=[103.53, 116.28, 123.675],\n"
        " std=[1.0, 1.0, 1.0])\nbackbone=dict(style='caffe'), target_means=[0.0]",
    ],
)
@pytest.mark.parametrize("name", ["config", "cfg"])
def test_mmdetections_configuration_is_looked_at(text, name):
    tensors = tiny("mmdetection", classes=3)
    detector = detector_of(tensors, {name: text})
    assert detector.arguments["backbone"]["stride_in_1x1"]
    assert detector.arguments["trunk"]["pixel_mean"] == (123.675, 116.28, 103.53)
    assert detector.arguments["trunk"]["pixel_std"] == (1, 1, 1)
    np.testing.assert_array_equal(
        detector.variables["trunk.backbone.conv1.kernel"],
        tensors["backbone.conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1],
    )


def renamed(owner, old, new):
    return {k.replace(old, new): v for k, v in tiny(owner, masks=True).items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            tiny("torchvision") | {"roi_heads.box_head.0.0.weight": np.ones(1)},
            "second Faster or Mask R-CNN",
        ),
        (
            tiny("torchvision")
            | {"backbone.fpn.inner_blocks.0.1.weight": np.ones(1, np.float32)},
            "second Faster or Mask R-CNN",
        ),
        (renamed("mmdetection", "bbox_head.", "bbox_head.0."), "a Cascade R-CNN"),
        (renamed("detectron2", "box_predictor.", "box_predictor.0."), "a Cascade"),
        (renamed("mmdetection", "roi_head.", ""), r"mmdetection 1\.x"),
        (
            tiny("mmdetection")
            | {"backbone.layer2.0.conv2_offset.weight": np.ones(1, np.float32)},
            r"mmdetection 1\.x",
        ),
        (renamed("detectron2", "roi_heads.box_head", "roi_heads.res5"), r"\(C4\)"),
        (renamed("mmdetection", "lateral_convs.0.conv", "x.gn"), "group normalisation"),
        (renamed("mmdetection", "neck.", "bottleneck."), "no FPN"),
        (renamed("mmdetection", "backbone.layer3.", "x."), "no blocks in stage 3"),
        (
            tiny("mmdetection", TINY._replace(branch=V1))
            | {"backbone.layer2.0.conv2.conv_offset.weight": np.ones((27, 8, 3, 3))},
            "offset branches have",
        ),
        (
            tiny("mmdetection") | {"neck.fpn_convs.0.conv.weight": np.ones(3)},
            r"'neck\.fpn_convs\.0\.conv\.weight' has shape \(3,\)",
        ),
        ({"encoder.weight": np.ones(3)}, "its first tensor is 'encoder.weight'"),
        (tiny("mmdetection") | tiny("detectron2"), "of mmdetection and of detectron2"),
    ],
)
def test_other_networks_are_refused_in_a_line(tmp_path, tensors, message):
    write_pth(tmp_path / "a.pth", tensors)
    with pytest.raises(ValueError, match=rf"'a\.pth'.*{message}") as error:
        read_detector(tmp_path / "a.pth")
    assert str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rpn_head.rpn_reg.bias": None}, r"nothing for 'rpn\.deltas\.bias'"),
        ({"extra.weight": np.ones(3, np.float32)}, r"has 'extra\.weight', for which"),
        (
            {"rpn_head.rpn_cls.bias": np.ones(4, np.float32)},
            r"'rpn\.classifier\.bias' has shape \(4,\); expected \(3,\)",
        ),
        ({"rpn_head.rpn_cls.bias": np.ones(3, np.int64)}, "dtype int64"),
        (
            {"backbone.layer1.4.conv1.weight": np.ones((8, 8, 1, 1), np.float32)},
            "layer1.4.conv1.kernel', for which the network has no place",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    tensors = tiny("mmdetection", classes=3) | change
    write_pth(tmp_path / "a.pth", {k: v for k, v in tensors.items() if v is not None})
    with pytest.raises(ValueError, match=rf"'a\.pth'.*{message}"):
        import_detector(tmp_path / "a.pth")
