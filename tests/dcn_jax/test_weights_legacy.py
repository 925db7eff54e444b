"""Files of torch before version 1.6: what is read, and what is refused."""

import struct
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest

from dcn_jax.weights import read_state_dict
from tests.dcn_jax.test_weights import DTYPES, malicious_pickles
from tests.support.torch_files import Call, View, write_legacy

# torch's names for others are of version 3, which the format does not have.
STORED = [d for d in DTYPES if "uint" not in d and "float8" not in d] + ["uint8"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def test_every_element_type(path):
    values = np.asarray([[0, 1, 0, 3], [1, 1, 2, 0]])
    content = OrderedDict((d, values.astype(jnp.dtype(d))) for d in STORED)
    write_legacy(path, {"state_dict": content, "meta": {"epoch": 12}})
    tensors = read_state_dict(path)
    assert list(tensors) == STORED
    for dtype, tensor in tensors.items():
        assert tensor.dtype == jnp.dtype(dtype)
        assert not tensor.flags.writeable
        np.testing.assert_array_equal(tensor, values.astype(tensor.dtype))


def test_views_of_a_shared_storage(path):
    storage = np.arange(24, dtype=np.float32)
    content = {
        "whole": View(storage, 0, (2, 3, 4), (12, 4, 1)),
        "transposed": View(storage, 12, (4, 3), (1, 4)),
        "scalar": View(storage, 23, (), ()),
    }
    write_legacy(path, content)
    tensors = read_state_dict(path)
    np.testing.assert_array_equal(tensors["whole"], storage.reshape(2, 3, 4))
    np.testing.assert_array_equal(tensors["transposed"], storage[12:].reshape(3, 4).T)
    assert tensors["scalar"] == 23


def test_a_storage_that_is_a_part_of_another(path):
    storage = np.arange(24, dtype=np.float32)
    write_legacy(path, {"a": storage})
    data = path.read_bytes()
    part = b"(X\x01\x00\x00\x001K\x05K\x0atN"  # its name, offset and count
    whole = data.replace(b"\x8a\x01\x18NtQ", b"\x8a\x01\x18" + part[:-1] + b"tQ")
    assert whole != data
    path.write_bytes(whole.replace(b"(\x8a\x01\x18t(", b"(\x8a\x01\x0at("))
    np.testing.assert_array_equal(read_state_dict(path)["a"], storage[5:15])
    path.write_bytes(whole.replace(b"K\x05K\x0at", b"K\x0fK\x0at"))
    with pytest.raises(ValueError, match="not a part of storage"):
        read_state_dict(path)


def test_names_off_the_list_are_inert_beside_the_tensors(path, tmp_path):
    trace = tmp_path / "executed"
    call = Call("os", "system", (f"touch {trace}",))
    tensors = {"a": np.ones(3, np.float32)}
    write_legacy(path, {"state_dict": tensors, "meta": {"x": call}, "hooks": [call]})
    assert list(read_state_dict(path)) == ["a"]
    write_legacy(path, {"state_dict": tensors | {"b": call}})
    with pytest.raises(ValueError, match=r"uses `os\.system`, which is refused"):
        read_state_dict(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", malicious_pickles())
@pytest.mark.parametrize("part", ["number", "object", "keys"])
def test_a_pickle_that_is_not_plain_data_is_refused(path, part, name):
    write_legacy(path, {"a": np.ones(3)}, **{part: malicious_pickles()[name]})
    with pytest.raises(ValueError, match=r"weights\.pth'(:| holds no named)"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"data": struct.pack("<q", 3) + bytes(11)}, "20 bytes; the file has 19"),
        ({"data": struct.pack("<q", 3) + bytes(13)}, "20 bytes; the file has 21"),
        ({"data": struct.pack("<q", 4) + bytes(12)}, "3 elements; the file says 4"),
        ({"keys": b"\x80\x02]X\x01\x00\x00\x001a."}, "not the names of its storages"),
        ({"keys": b"\x80\x02]K\x00a."}, "not the names of its storages"),
        ({"keys": b"\x80\x02]."}, "not the names of its storages"),
        ({"version": b"\x80\x02M\xe8\x03."}, "another version"),
        ({"system": b"\x80\x02}X\x0d\x00\x00\x00little_endian\x89s."}, "little-endian"),
    ],
)
def test_damaged_files_are_refused(path, parts, message):
    write_legacy(path, {"a": np.ones(3, np.float32)}, **parts)
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)


def test_cut_and_changed_files_are_refused(path):
    write_legacy(path, {"a": np.arange(100, dtype=np.float32)})
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
