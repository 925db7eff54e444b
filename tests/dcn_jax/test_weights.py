"""Reading of weight files: what is read, and what is refused."""

import io
import os
import struct
import tarfile
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from dcn_jax.weights import read_state_dict
from dcn_jax.weights.pth import read_pth
from tests.support.torch_files import Call, Parameter, View, write_pth

DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
    *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_every_element_type(path, byte_order):
    values = np.asarray([[0, 1, 0, 3], [1, 1, 2, 0]])
    content = OrderedDict((d, values.astype(jnp.dtype(d))) for d in DTYPES)
    write_pth(path, content, byte_order=byte_order)
    tensors = read_state_dict(path)
    assert list(tensors) == list(DTYPES)
    for dtype, tensor in tensors.items():
        assert tensor.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(tensor, values.astype(jnp.dtype(dtype)))


def test_views_of_a_shared_storage(path):
    storage = np.arange(24, dtype=np.float32)
    content = {
        "whole": View(storage, 0, (2, 3, 4), (12, 4, 1)),
        "transposed": View(storage, 12, (4, 3), (1, 4)),
        "expanded": View(storage, 5, (2, 3), (0, 1)),
        "scalar": View(storage, 23, (), ()),
        "empty": View(storage, 24, (0, 3), (3, 1)),
    }
    write_pth(path, content)
    tensors = read_state_dict(path)
    whole = storage.reshape(2, 3, 4)
    np.testing.assert_array_equal(tensors["whole"], whole)
    np.testing.assert_array_equal(tensors["transposed"], whole[1].T)
    np.testing.assert_array_equal(tensors["expanded"], [[5, 6, 7], [5, 6, 7]])
    assert tensors["scalar"] == 23
    assert tensors["empty"].shape == (0, 3)
    assert np.shares_memory(tensors["whole"], tensors["transposed"])


def test_other_values_and_parameters(path):
    content = {
        "list": [1, -(10**12), 2.5, None, True, False],
        "tuple": ("a", ("ä",)),
        "parameter": Parameter(np.ones(3, np.float32)),
        # A parameter with attributes.
        "tagged": Call(
            *("torch._utils", "_rebuild_parameter_with_state"),
            (np.ones(3, np.float32), True, OrderedDict(), {"tag": "x"}),
        ),
    }
    write_pth(path, content)
    loaded = read_pth(path)
    assert loaded["list"] == content["list"]
    assert loaded["tuple"] == content["tuple"]
    for name in ("parameter", "tagged"):
        np.testing.assert_array_equal(loaded[name], np.ones(3))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_are_taken_off(path, wrapper, prefix):
    content = OrderedDict({f"{prefix}fc.bias": np.ones(3, np.float32)})
    if wrapper:
        content = {wrapper: content, "epoch": 3, "arch": "resnet50"}
    write_pth(path, content)
    assert list(read_state_dict(path)) == ["fc.bias"]


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    content = {
        "module.a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "module.b": np.asarray([1, 2], np.int64),
    }
    save_file(content, path)
    tensors = read_state_dict(path)
    for name in "ab":
        np.testing.assert_array_equal(tensors[name], content[f"module.{name}"])
        assert tensors[name].dtype == content[f"module.{name}"].dtype
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    data = np.asarray([1.5, -2], jnp.bfloat16).tobytes()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert read_state_dict(path)["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(read_state_dict(path)["a"], [1.5, -2])
    path.write_bytes(struct.pack("<Q", 1 << 60) + header + data)
    with pytest.raises(ValueError, match=r"weights\.safetensors'.*[Hh]eader"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("collections", "OrderedDict.fromkeys"),
        ("torchvision.models.resnet", "ResNet"),
        ("numpy.core.multiarray", "_reconstruct"),
    ],
)
def test_a_name_off_the_list_is_refused(path, tmp_path, module, name):
    trace = tmp_path / "executed"
    write_pth(path, {"state_dict": Call(module, name, (f"touch {trace}",))})
    with pytest.raises(ValueError, match=rf"uses `{module}\.{name}`, which is refused"):
        read_state_dict(path)
    assert not trace.exists()


def malicious_pickles():
    system = b"cos\nsystem\n"
    return {
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "instance": b"\x80\x02(X\x01\x00\x00\x00xios\nsystem\n.",
        "object": b"\x80\x02(" + system + b"X\x01\x00\x00\x00xo.",
        "new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "extension": b"\x80\x02\x82\x01.",
        "text identifier": b"\x80\x02P1\n.",
        "text integer": b"\x80\x02I1\n.",
        "call of data": b"\x80\x02X\x01\x00\x00\x00x)R.",
        "call of a type": b"\x80\x02ctorch\nFloatStorage\n)R.",
        "fake name": b"\x80\x02X\x09\x00\x00\x00os.system\x85)R.",
        "attributes of a name": b"\x80\x02ccollections\nOrderedDict\n}b.",
        "key of nested tuples": b"\x80\x02})\x85\x85Ns.",
        "list as dictionary": b"\x80\x02]X\x01\x00\x00\x00xNs.",
        "empty stack": b"\x80\x02.",
        "tuple of too few": b"\x80\x02N\x87.",
        "no mark": b"\x80\x02Nt.",
        "unknown memo": b"\x80\x02h\x07.",
        "no end": b"\x80\x02N",
        "empty": b"",
        "no pickle": b"<html>",
        "long text": b"\x80\x02X\xff\xff\xff\xff.",
        "identifier of nothing": b"\x80\x02NQ.",
        "wrong arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        "no storage": b"\x80\x02ctorch._utils\n_rebuild_tensor\n(NK\x00))tR.",
    }


@pytest.mark.parametrize("name", malicious_pickles())
def test_a_pickle_that_is_not_plain_data_is_refused(path, name):
    write_pth(path, {}, **{"data.pkl": malicious_pickles()[name]})
    with pytest.raises(ValueError, match=r"cannot read .*weights\.pth'"):
        read_pth(path)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View(np.zeros(4, np.float32), 1, (2, 2), (2, 1)), "does not fit"),
        (View(np.zeros(4, np.float32), 0, (2**60,), (1,)), "does not fit"),
        (View(np.zeros(4, np.float32), 0, (2**40, 2**40), (0, 0)), "too"),
        (View(np.zeros(4, np.float32), -1, (2,), (1,)), "offset, size, stride"),
        (View(np.zeros(4, np.float32), 3, (2,), (-1,)), "offset, size, stride"),
        (View(np.zeros(4, np.float32), 0, (2, 2), (1,)), "offset, size, stride"),
    ],
)
def test_a_view_beyond_its_storage_is_refused(path, view, message):
    write_pth(path, {"a": view})
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)


def test_sizes_are_checked_against_the_bytes(path):
    content = {"a": np.ones(4, np.float32)}
    write_pth(path, content, **{"data/0": bytes(12)})
    with pytest.raises(ValueError, match=r"4 elements of float32.*12 bytes"):
        read_state_dict(path)
    write_pth(path, content)
    data = path.read_bytes()
    # The size of data/0 in the zip's directory.
    at = data.index(struct.pack("<II", 16, 16), data.index(b"PK\x01\x02"))
    claim = struct.pack("<II", 1 << 31, 1 << 31)
    path.write_bytes(data[:at] + claim + data[at + 8 :])
    with pytest.raises(ValueError, match=r"claims 2147483648 bytes"):
        read_state_dict(path)


def test_compressed_members_are_refused(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", bytes(10**6))
    with pytest.raises(ValueError, match="compressed"):
        read_state_dict(path)


def test_damaged_files_are_refused(path):
    write_pth(path, {"a": np.arange(100, dtype=np.float32)})
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, 2 * len(data))])
        try:
            tensors = read_state_dict(path)
        except ValueError as error:
            assert "weights.pth" in str(error)
        else:
            assert all(t.size <= 100 for t in tensors.values())


def test_other_formats_are_refused(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(ValueError, match="tar archive"):
        read_state_dict(path)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match="not a file of torch"):
        read_state_dict(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a file of torch"):
        read_state_dict(path)
    write_pth(path, {}, **{"constants.pkl": b""})
    with pytest.raises(ValueError, match="TorchScript"):
        read_state_dict(path)
    write_pth(path, {"epoch": 3})
    with pytest.raises(ValueError, match="holds no named tensors"):
        read_state_dict(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        read_state_dict(os.fspath(path.parent / "nothing.pth"))
