"""The command that converts files of weights, and our own form of a detector."""

import json
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.modules import DeformRoIPoolByLevel
from dcn_jax.weights import (
    export_weights,
    import_detector,
    read_detector,
    read_state_dict,
)
from dcn_jax.weights.convert import main
from dcn_jax.weights.detector import variables_of
from dcn_jax.weights.detector_file import detector_in
from dcn_jax.weights.own_format import write_own
from dcn_jax.weights.state_dict import WeightFile
from dcn_jax.weights.torch_writer import write_pth
from tests.support import owner_networks as owners
from tests.support.owner_networks import Body

TINY = Body((1, 2, 1, 1), stem=8, branch=27)
FEW: dict[str, Any] = dict(width=8, hidden=16, classes=3)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.pth"
    write_pth(path, owners.random(owners.mmdetection(TINY, pool="mdpool", **FEW)))
    return path


def test_our_own_form_is_read_back(tmp_path, source, capsys):
    target = tmp_path / "own.safetensors"
    assert main([str(source), str(target)]) == 0
    out = capsys.readouterr().out
    assert "'in.pth': mmdetection's faster_rcnn_fpn" in out
    assert "tensors of no use here, such as" in out and "num_batches_tracked" in out
    before, after = read_detector(source), read_detector(target)
    assert after.owner == "dcn_jax" and after.network == before.network
    assert after.arguments == before.arguments
    assert after.arguments["pool_layer"] is DeformRoIPoolByLevel
    ours, again = import_detector(source), import_detector(target)
    values = variables_of(again)
    for path, value in variables_of(ours).items():
        np.testing.assert_array_equal(values[path], value)
    assert again.rpn.code == ours.rpn.code


@pytest.mark.parametrize("name", ["out.pth", "out.safetensors"])
def test_from_form_to_form_and_back(tmp_path, source, name):
    own, target = tmp_path / "own.safetensors", tmp_path / name
    assert main([str(source), str(own), "--to=dcn_jax"]) == 0
    assert main([str(own), str(target), "--to=mmdetection"]) == 0
    theirs, written = read_state_dict(source), read_state_dict(target)
    assert {n for n in theirs if "num_batches" not in n} == set(written)
    for key, value in written.items():
        np.testing.assert_array_equal(value, theirs[key])


def test_what_no_tensor_tells_is_said(tmp_path, capsys):
    source = tmp_path / "model.pkl"
    tensors = owners.random(owners.detectron2(TINY, **FEW))
    source.write_bytes(pickle.dumps({"model": tensors}, protocol=2))
    assert main([str(source), str(tmp_path / "out.pth"), "--to=mmdetection"]) == 0
    out = capsys.readouterr().out
    assert (
        "not carried: backbone has stride_in_1x1 True; mmdetection's have False" in out
    )
    assert "not carried: trunk has pixel_std (1.0, 1.0, 1.0)" in out


def test_group_norm_is_not_exported(tmp_path):
    model = ResNet((1, 1, 1, 1), stem_features=8, norm="group_norm", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`model` has norm 'group_norm'"):
        export_weights(model, tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()


def test_numbers_that_are_repeated_are_refused(tmp_path):
    """They would take more memory in our layout than the file bears out."""
    path = tmp_path / "in.npz"
    tensors = owners.random(owners.mmdetection(TINY, **FEW))
    name = "roi_head.bbox_head.shared_fcs.0.weight"
    tensors[name] = np.broadcast_to(tensors[name][:, :1], tensors[name].shape)
    weights = WeightFile(tensors, {})
    with pytest.raises(ValueError, match="has the same number in several places"):
        detector_in(weights, repr(path.name))


def test_a_tensor_of_another_shape_or_network_is_refused(tmp_path, source, capsys):
    own, target = tmp_path / "own.safetensors", tmp_path / "out.safetensors"
    assert main([str(source), str(own)]) == 0
    detector = read_detector(own)
    fc6 = {"roi.fc6.kernel": np.ones(3, np.float32)}
    for added, message in (
        ({"extra": np.ones(3, np.float32)}, "no place"),
        (fc6, "'roi.fc6.kernel' has shape (3,)"),
    ):
        variables = detector.variables | added
        write_own(own, detector.network, detector.arguments, variables)
        assert main([str(own), str(target)]) == 1
        assert message in capsys.readouterr().err
        assert not target.exists()


def test_a_backbone_alone(tmp_path, capsys):
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    tensors = owners.random(owners.resnet(TINY))
    write_pth(source, tensors | {"fc.weight": np.ones((5, 8)), "fc.bias": np.ones(5)})
    assert main([str(source), str(target), "--to=torchvision"]) == 0
    assert "a ResNet" in capsys.readouterr().out
    written = read_state_dict(target)
    assert set(written) == {n for n in tensors if "num_batches" not in n}
    for key, value in written.items():
        np.testing.assert_array_equal(value, tensors[key])
    assert main([str(source), str(target)]) == 1
    target.unlink()
    del tensors["layer3.0.conv1.weight"]
    write_pth(source, tensors)
    assert main([str(source), str(target), "--to=torchvision"]) == 1
    assert "missing: 'layer3.0.conv1.kernel'" in capsys.readouterr().out
    assert not target.exists()


def test_what_is_unused_or_missing_is_listed(tmp_path, capsys):
    tensors = owners.random(owners.mmdetection(TINY, **FEW))
    tensors["ema.\x1b[31m"] = tensors.pop("rpn_head.rpn_cls.bias")
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    write_pth(source, tensors)
    assert main([str(source), str(target)]) == 1
    out = capsys.readouterr().out
    assert r"unused: 'ema.\x1b[31m'" in out
    assert "missing: 'rpn.classifier.bias'" in out
    assert not target.exists()


def test_errors_are_one_line(tmp_path, source, capsys):
    for arguments, message in (
        (["nothing.pth", "a.safetensors"], "No such file"),
        ([str(source), "a.pth"], "expected .safetensors for dcn_jax"),
        (
            [str(source), "a.pth", "--to=torchvision"],
            "which no detector of torchvision has",
        ),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ")
        assert error.count("\n") == 1


def write_described(path, texts):
    header = {"__metadata__": {"format": "dcn_jax"} | texts}
    header["a"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    data = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(4))


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ("os.system", "{}", "its network is 'os.system'"),
        ("faster_rcnn_fpn", "{", "no JSON"),
        ("faster_rcnn_fpn", "[" * 100_000, "no JSON"),
        ("faster_rcnn_fpn", "[1]", "expected names"),
        ("faster_rcnn_fpn", '{"num_classes": 9999999999}', "a number of 10 digits"),
        ("faster_rcnn_fpn", "{}", "its arguments do not fit"),
        ("faster_rcnn_fpn", '{"pool_layer": "os"}', "its pool_layer is 'os'"),
        ("faster_rcnn_fpn", f'{{"rpn": {{"x": {[1] * 65}}}}}', "a sequence of 65"),
        ("faster_rcnn_fpn", '{"backbone": {"depths": [9999]}}', "more blocks than"),
        ("faster_rcnn_fpn", '{"backbone": {"depths": "x"}}', "do not fit"),
        ("faster_rcnn_fpn", '{"rpn": {"test": {"x": 1}}}', "its test: "),
        ("faster_rcnn_fpn", '{"backbone": {"depths": [1]}, "x": 1}', "do not fit"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, network, arguments, message):
    path = tmp_path / "own.safetensors"
    write_described(path, {"network": network, "arguments": arguments})
    with pytest.raises(ValueError, match=rf"'own\.safetensors'.*{message}") as error:
        import_detector(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 800
