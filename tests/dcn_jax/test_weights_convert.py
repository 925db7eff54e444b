"""The command that converts files of weights, and our own form of a detector."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from dcn_jax.modules import DeformRoIPoolByLevel
from dcn_jax.weights import import_detector, read_detector, read_state_dict
from dcn_jax.weights.convert import main
from dcn_jax.weights.detector import variables_of
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
        ([str(source), "a.pth", "--to=torchvision"], "torchvision has no name for"),
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
