"""Initialisation of a detector from another, of another number of classes."""

from typing import Any

import numpy as np
import pytest
from flax import nnx

from dcn_jax.modules import DeformRoIPool, RoIAlign
from dcn_jax.networks import NETWORKS, faster_rcnn, faster_rcnn_fpn, mask_rcnn_fpn
from dcn_jax.weights import init_from
from dcn_jax.weights.detector import variables_of
from dcn_jax.weights.own_format import write_own
from dcn_jax.weights.torch_writer import write_pth
from tests.support import owner_networks as owners
from tests.support.owner_networks import Body
from tests.support.tiny_detector import filled

TINY = Body((1, 2, 1, 1), stem=8)
BACKBONE = dict(depths=(1, 2, 1, 1), stem_features=8)
STD = (58.395, 57.12, 57.375)


def detector(num_classes=3, *, mask=True, backbone=None, **stages):
    settings: dict[str, Any] = dict(
        backbone=BACKBONE | (backbone or {}),
        neck=dict(features=8),
        rpn=dict(features=8, anchor_sizes=(32,)),
        pool=dict(output_size=7, hidden_features=4),
        pool_layer=DeformRoIPool,
        box=dict(features=16),
    )
    make: Any = faster_rcnn_fpn
    more: dict[str, Any] = {}
    if mask:
        make = mask_rcnn_fpn
        more = dict(
            mask=dict(features=8),
            mask_pool=dict(output_size=14, hidden_features=4),
        )
    return filled(
        lambda: make(num_classes, **(settings | more | stages), rngs=nnx.Rngs(0))
    )


def write(path, owner, body=TINY, *, width=8, hidden=16, **kwargs):
    shapes = getattr(owners, owner)(body, width=width, hidden=hidden, **kwargs)
    tensors = owners.random(shapes)
    write_pth(path, tensors)
    return tensors


@pytest.mark.parametrize("owner", ["torchvision", "mmdetection", "detectron2"])
def test_class_layers_start_anew_with_another_number_of_classes(tmp_path, owner):
    path = tmp_path / "a.pth"
    tensors = write(path, owner, classes=7, masks=True)
    model = detector(backbone=dict(deform_blocks=(0, -1, -1, -1)))
    before = variables_of(model)
    report = init_from(model, path)
    after = variables_of(model)
    assert set(report.restarted) == {
        f"{layer}.{leaf}"
        for layer in ("roi.classifier", "roi.regressor", "mask.predictor")
        for leaf in ("kernel", "bias")
    }
    for name, value in after.items():
        # Offset branches and deformable pooling are not in the file.
        kept = name in report.restarted or "offset" in name or ".pool." in name
        assert kept == (name in report.kept or name in report.restarted)
        if kept:
            np.testing.assert_array_equal(value, before[name])
        elif name.endswith("kernel"):
            assert (value != before[name]).any()
    assert len(report.loaded) + len(report.unused) == len(tensors)
    assert all(
        "num_batches" in name or "pred" in name or "cls" in name or "logits" in name
        or "fc_" in name
        for name in report.unused
    )  # fmt: skip


def test_the_same_number_of_classes_is_taken_over(tmp_path):
    path = tmp_path / "a.pth"
    tensors = write(path, "mmdetection", classes=3, masks=True)
    model = detector()
    report = init_from(model, path)
    assert report.restarted == () and report.differences == ()
    theirs = tensors["roi_head.bbox_head.fc_cls.bias"]
    np.testing.assert_array_equal(model.roi.classifier.bias[...], np.roll(theirs, 1))


def test_masks_may_be_missing_on_either_side(tmp_path):
    path = tmp_path / "a.pth"
    write(path, "mmdetection", classes=3)
    report = init_from(detector(), path)
    assert any(name.startswith("mask.convs") for name in report.kept)
    write(path, "mmdetection", classes=3, masks=True)
    report = init_from(detector(mask=False), path)
    assert "roi_head.mask_head.upsample.weight" in report.unused


def test_other_conventions_are_said_and_colours_are_kept(tmp_path):
    path = tmp_path / "a.pth"
    tensors = write(path, "detectron2", classes=3)
    model = detector(mask=False)
    report = init_from(model, path)
    assert report.differences == (
        "`stride_in_1x1` of the file's network is True, the module's False",
    )
    theirs = tensors["backbone.bottom_up.stem.conv1.weight"]
    expected = (
        theirs.transpose(2, 3, 1, 0)[:, :, ::-1] * np.asarray(STD, np.float32)[:, None]
    )
    np.testing.assert_allclose(
        model.trunk.backbone.conv1.kernel[...], expected, rtol=1e-6
    )


@pytest.mark.parametrize("scale", [1, 2])
def test_another_scale_of_masks_is_said(tmp_path, scale):
    path = tmp_path / "a.pth"
    write(path, "mmdetection", TINY._replace(branch=27), classes=3)
    deformed = dict(deform_blocks=(0, -1, -1, -1), mask_scale=scale)
    report = init_from(detector(mask=False, backbone=deformed), path)
    said = "`mask_scale` of the file's network is 1, the module's 2"
    assert report.differences == ((said,) if scale == 2 else ())


@pytest.mark.parametrize("owner", ["torchvision", "mmdetection", "detectron2"])
def test_other_networks_take_the_backbone(tmp_path, owner):
    path = tmp_path / "a.pth"
    body = TINY if owner == "torchvision" else TINY._replace(branch=27)
    write(path, owner, body, classes=7)
    model = filled(
        lambda: faster_rcnn(
            3,
            backbone=BACKBONE | dict(output_stride=16, deform_blocks=(0, -1, -1, -1)),
            neck=dict(features=8),
            rpn=dict(features=8),
            pool=dict(output_size=3, hidden_features=4),
            box=dict(features=16),
            rngs=nnx.Rngs(0),
        )
    )
    before = variables_of(model)
    report = init_from(model, path)
    branches = [name for name in report.kept if "offset_conv" in name]
    assert bool(branches) == (owner == "torchvision")
    for name, value in variables_of(model).items():
        if not name.startswith("trunk.backbone."):
            np.testing.assert_array_equal(value, before[name])
        elif name.endswith("scale"):
            assert (value != before[name]).any()


@pytest.mark.parametrize(
    ("body", "changes", "message"),
    [
        (TINY._replace(depths=(1, 1, 1, 1)), {}, r"nothing for 'trunk\.backbone\.lay"),
        (TINY._replace(depths=(1, 2, 2, 1)), {}, "for which the module has no place"),
        (TINY._replace(branch=27), {}, "for which the module has no place"),
        (TINY, dict(hidden=8), r"in our layout; expected \("),
    ],
)
def test_another_network_is_refused(tmp_path, body, changes, message):
    path = tmp_path / "a.pth"
    write(path, "mmdetection", body, classes=3, masks=True, **changes)
    model = detector()
    before = variables_of(model)
    with pytest.raises(ValueError, match=message):
        init_from(model, path)
    for name, value in variables_of(model).items():
        np.testing.assert_array_equal(value, before[name])


# Networks of our own, on one map and with a norm that no other owner has.
OF_OUR_OWN: dict[str, dict[str, Any]] = {
    "faster_rcnn": dict(
        rpn=dict(features=8),
        pool_layer=RoIAlign,
        pool=dict(output_size=3),
        box=dict(features=16),
    ),
    "r_fcn": dict(rpn=dict(features=8), psroi=dict(bins=3)),
    "class_aware_rpn": dict(rpn=dict(features=8)),
    "deeplab": {},
}


def our_own(network, num_classes, **backbone):
    body = BACKBONE | dict(output_stride=16, norm="group_norm", modulated=False)
    settings = dict(backbone=body | backbone, neck=dict(features=8))
    return num_classes, settings | OF_OUR_OWN[network]


def make_own(network, num_classes, **backbone):
    classes, settings = our_own(network, num_classes, **backbone)
    make = NETWORKS[network]
    return filled(lambda: make(classes, **settings, rngs=nnx.Rngs(0)))


def write_own_file(path, network, num_classes):
    """Writes a regular network; returns its variables."""
    classes, settings = our_own(network, num_classes, deform_blocks=(0, 0, 0, 0))
    model = make_own(network, classes, **settings["backbone"])
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.standard_normal(value.shape).astype(value.dtype)
        for name, value in variables_of(model).items()
    }
    write_own(path, network, {"num_classes": classes, **settings}, arrays)
    return arrays


@pytest.mark.parametrize("network", OF_OUR_OWN)
def test_a_network_of_our_own_is_gone_on_with(tmp_path, network):
    path = tmp_path / "a.safetensors"
    arrays = write_own_file(path, network, 3)
    model = make_own(network, 3, deform_blocks=(0, 0, -1, -1))
    report = init_from(model, path)
    assert report.restarted == () and report.unused == ()
    assert report.kept and all("offset_conv" in name for name in report.kept)
    found = variables_of(model)
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("network", OF_OUR_OWN)
def test_one_of_other_classes_starts_their_layers_anew(tmp_path, network):
    path = tmp_path / "a.safetensors"
    arrays = write_own_file(path, network, 5)
    model = make_own(network, 3, deform_blocks=(0, 0, 0, 0))
    before = variables_of(model)
    report = init_from(model, path)
    found = variables_of(model)
    differing = {n for n, value in arrays.items() if value.shape != found[n].shape}
    assert differing and set(report.restarted) == differing
    for name, value in found.items():
        expected = before[name] if name in differing else arrays[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_another_kind_of_our_own_takes_the_backbone(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = write_own_file(path, "r_fcn", 3)
    model = make_own("faster_rcnn", 3)
    before = variables_of(model)
    init_from(model, path)
    for name, value in variables_of(model).items():
        taken = name.startswith("trunk.backbone.") and "offset_conv" not in name
        expected = arrays[name] if taken else before[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)
