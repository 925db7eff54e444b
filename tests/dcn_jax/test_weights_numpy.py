"""Pickles of numpy arrays: what is read, and what is refused."""

import os
import pickle
import struct

import numpy as np
import pytest

from dcn_jax.weights import read_state_dict
from tests.dcn_jax.test_weights import malicious_pickles

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pkl"


def write(path, content, protocol):
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_element_type(path, protocol):
    values = np.asarray([[0, 1, 0, 250], [1, 1, 2, 0]])
    tensors = {d: values.astype(d) for d in DTYPES} | {
        "scalar": np.asarray(7),
        "empty": np.zeros((0, 3), np.float32),
        "fortran": np.asfortranarray(values),
        "transposed": values.T,
    }
    shared = tensors | {"same": tensors["f4"]}
    write(path, {"model": shared, "__author__": "a", "iteration": 9}, protocol)
    read = read_state_dict(path)
    assert list(read) == list(shared)
    for name, tensor in read.items():
        assert tensor.dtype == shared[name].dtype
        assert not tensor.flags.writeable
        np.testing.assert_array_equal(tensor, shared[name])


def test_a_flat_dictionary(path):
    write(path, {"conv1.weight": np.ones(3, np.float32), "epoch": 3}, 4)
    assert list(read_state_dict(path)) == ["conv1.weight"]


def test_python_2(path):
    """As written there: bytes and text are one type."""
    data = np.arange(40_000, dtype=np.float32)
    for count in (3, 40_000):
        raw = data[:count].tobytes()
        array = (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"(K\x01" + b"J" + struct.pack("<i", count) + b"\x85"
            b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
            b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
        )
        path.write_bytes(b"\x80\x02}U\x06conv1." + array + b"s.")
        read = read_state_dict(path)
        np.testing.assert_array_equal(read["conv1."], data[:count])


class Foreign:
    """Of a module that is not the reader's."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_names_off_the_list_are_inert_beside_the_tensors(path, tmp_path, protocol):
    trace = tmp_path / "executed"
    model = {"a": np.ones(3, np.float32)}
    write(path, {"model": model, "meta": [np.float64(3), Foreign(trace)]}, protocol)
    assert list(read_state_dict(path)) == ["a"]
    for content in (
        {"model": model | {"b": Foreign(trace)}},
        {"model": Foreign(trace)},
        Foreign(trace),
    ):
        write(path, content, protocol)
        with pytest.raises(
            ValueError, match=r"model\.pkl'.* uses `.*system`, which is"
        ):
            read_state_dict(path)
    assert not trace.exists()


NAMES = sorted(set(malicious_pickles()) - {"empty", "no pickle"})


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_that_is_not_plain_data_is_refused(path, name):
    path.write_bytes(malicious_pickles()[name])
    with pytest.raises(ValueError, match=r"cannot read .*model\.pkl'|no named"):
        read_state_dict(path)


def rebuilt(array, **changes):
    """The pickle of an array whose content is changed."""
    _, _, state = array.__reduce__()
    names = ("version", "shape", "dtype", "fortran", "data")
    content = tuple((dict(zip(names, state, strict=True)) | changes).values())

    class Array:
        def __reduce__(self):
            return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), content

    return {"a": Array()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (4,)}, r"shape \(4,\) and type float32, but 12 bytes"),
        ({"shape": (2**62, 2**62)}, "but 12 bytes"),
        ({"shape": (-3,)}, "shape"),
        ({"shape": (1,) * 17 + (3,)}, "shape"),
        ({"shape": [3]}, "shape"),
        ({"data": "ab"}, "but 2 bytes"),
        ({"data": None}, "without bytes"),
        ({"dtype": np.dtype(">f4")}, "byte order '>'"),
        ({"dtype": np.dtype(object)}, "element type 'O8'"),
        ({"dtype": np.dtype([("x", "f4")])}, "element type 'V4'"),
        ({"dtype": "f4"}, "no element type"),
    ],
)
def test_an_array_that_cannot_be_is_refused(path, changes, message):
    write(path, rebuilt(np.ones(3, np.float32), **changes), 4)
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)
