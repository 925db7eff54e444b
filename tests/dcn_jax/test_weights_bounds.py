"""Weight files that ask for far more time or memory than they have bytes."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from dcn_jax.weights import read_state_dict
from dcn_jax.weights.pth import read_pth
from tests.support.torch_files import View, write_legacy, write_pth

MIB = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def assert_refused(path, match=None, *, memory=False):
    """It is, in time, in a short printable line, and (to be asked for) in memory."""
    start = time.process_time()
    with pytest.raises(ValueError, match=match) as error:
        read_state_dict(path)
    # It takes a quarter, alone on a machine and without the checks of types here.
    assert time.process_time() - start < 4
    line = str(error.value)
    assert line.isprintable()
    assert len(line) < 1000
    if memory:
        with traced(1.5 * os.path.getsize(path) + 200e6), pytest.raises(ValueError):
            read_state_dict(path)


@contextlib.contextmanager
def traced(most):
    """What happens meanwhile takes so many bytes at most."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def text(data):
    return b"X" + struct.pack("<I", len(data)) + data


def doubled(levels):
    """A pickled tuple that is written out in 2**levels parts."""
    return b")" + b"q\x00h\x00\x86" * levels


GLOBAL = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000N%stQ"
IDENTIFIER = STORAGE.replace(b"N%s", text(b"cpu") + b"K\x04")


def tensor(offset=b"K\x00", size=b"K\x04\x85", stride=b"K\x01\x85"):
    rest = b"\x89)"  # requires_grad, hooks
    return (
        b"\x80\x02}" + text(b"a") + GLOBAL + b"(" + IDENTIFIER
        + offset + size + stride + rest + b"tRs."
    )  # fmt: skip


FORMS = ("zip", "legacy", "numpy")


def write_pickle(path, pickled, form="zip"):
    if form == "zip":
        write_pth(path, {"a": np.ones(4, np.float32)}, **{"data.pkl": pickled})
    elif form == "legacy":
        write_legacy(path, {"a": np.ones(4, np.float32)}, object=pickled)
    else:
        path.write_bytes(pickled)


def test_the_pickle_of_these_tests_is_sound(path):
    write_pickle(path, tensor())
    np.testing.assert_array_equal(read_state_dict(path)["a"], np.ones(4))


@pytest.mark.parametrize("place", ["offset", "size", "stride"])
@pytest.mark.parametrize(
    "value",
    [
        doubled(40),
        doubled(200),
        b"(" + doubled(30) + doubled(30) + b"t",
        b"}K\x01Ns",
        text(b"\x1b" * 10**5),
        b"]" + b"N\x85" * 50,
        b"G" + bytes(8),
        b"\x8a\xff" + b"\x7f" * 255,
        b"(" + b"K\x01" * 100_000 + b"t",
        b"(" + b"\x8a\x09" + b"\x7f" * 9 + b"t",
        b"h\x01",
    ],
    ids=lambda value: repr(value[:6]),
)
def test_what_is_no_size_is_refused(path, place, value):
    value = value.replace(b"h\x01", GLOBAL + b"q\x01h\x01\x86")
    write_pickle(path, tensor(**{place: value}))
    assert_refused(path, "a tensor has offset, size, stride|cannot read")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", [doubled(60), doubled(60) + b"\x85", b"N", b"]"])
def test_what_is_no_key_is_refused(path, key, form):
    write_pickle(path, b"\x80\x02}" + key + b"Ns.", form)
    assert_refused(path, "as a key")


@pytest.mark.parametrize("part", range(5))
def test_what_identifies_no_storage_is_refused(path, part):
    parts = [text(b"storage"), b"ctorch\nFloatStorage\n", text(b"0"), text(b"cpu")]
    parts.append(b"K\x04")
    parts[part] = doubled(60)
    write_pickle(path, b"\x80\x02(" + b"".join(parts) + b"tQ.")
    assert_refused(path, "not the identifier of a storage")


LENGTH = 2_000_000


def colliding(count):
    # Equal modulo the number by which Python hashes integers.
    keys = (i * (2**61 - 1) for i in range(count))
    return b"".join(b"\x8a\x0b" + k.to_bytes(11, "little") + b"N" for k in keys)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "unit",
    [
        *(b"(", b"}", b")\x85", b"]Na", b"\x8c\x01a", b"K\x01", b"N\x94"),
        *(b"ccollections\nOrderedDict\n)R", b"cos\nsystem\n)R", b"cos\nsystem\n)\x81"),
        *(b"C\x01a", b"U\x01a"),
    ],
    ids=repr,
)
def test_many_instructions_are_refused(path, unit, form):
    write_pickle(path, b"\x80\x02" + unit * (LENGTH // len(unit)) + b".", form)
    assert_refused(path, "more objects than")


@pytest.mark.parametrize("form", FORMS)
def test_colliding_keys_are_refused(path, form):
    write_pickle(path, b"\x80\x02}(" + colliding(LENGTH // 14) + b"u.", form)
    assert_refused(path)
    items = [b"\x80\x02}"]
    items += [b"(" + colliding(100) + b"u"] * 200
    write_pickle(path, b"".join(items) + b".", form)
    assert_refused(path, "numbers as keys")


@pytest.mark.parametrize("form", FORMS)
def test_an_index_far_into_the_memo_is_refused(path, form):
    write_pickle(path, b"\x80\x02Nr\xff\xff\xff\xff.", form)
    assert_refused(path, "more objects than")


@pytest.mark.parametrize("form", FORMS)
def test_many_long_names_are_refused(path, form):
    texts = [text(b"%0500d" % i) + b"q" + bytes([i % 256]) for i in range(2)]
    names = b"h\x00h\x01\x93" * 140_000
    write_pickle(path, b"\x80\x04" + b"".join(texts) + names + b".", form)
    assert_refused(path, "more objects than")


@pytest.mark.parametrize("form", ["legacy", "numpy"])
@pytest.mark.parametrize("kind", [b"X", b"B", b"T"])
def test_claims_of_bytes_that_are_not_there_are_refused(path, kind, form):
    write_pickle(path, b"\x80\x03" + kind + b"\xff\xff\xff\xff", form)
    assert_refused(path, "no end", memory=True)


def test_a_text_that_is_encoded_again_and_again_is_refused(path):
    start = b"\x80\x02c_codecs\nencode\nq\x00" + text(b"a" * 10**6) + b"q\x01"
    again = b"h\x00h\x01" + text(b"latin1") + b"\x86R" + b"N" * 5
    # It is not the last thing noted.
    start += b"".join(b"Nq" + bytes([i]) for i in range(2, 8))
    write_pickle(path, start + again * 1000 + b".", "numpy")
    assert_refused(path, "more bytes than the file", memory=True)


def test_storages_before_1_6_are_no_larger_than_the_file(path):
    content = {"a": View(np.zeros(4, np.float32), 0, (4,), (1,))}
    write_legacy(path, content)
    count = b"cpu\x8a\x01\x04"
    pickled = path.read_bytes()
    assert pickled.count(count) == 1
    path.write_bytes(pickled.replace(count, b"cpu\x8a\x06" + b"\xff" * 5 + b"\x00"))
    assert_refused(path, "the file has", memory=True)


def test_dictionaries_numbered_in_order_are_read(path):
    content = {i: {"step": i} for i in range(20_000)}  # an optimiser's state
    names = {i: "name" for i in range(1, 22_000)}
    categories = {i * 3: "name" for i in range(1000)}
    write_pth(path, {"state": content, "names": names, "categories": categories})
    loaded = read_pth(path)
    assert loaded["state"] == content
    assert loaded["names"] == names
    assert loaded["categories"] == categories


def test_many_tensors_are_read(path):
    shared = np.arange(4, dtype=np.float32)
    content = {f"layer{i}": View(shared, i % 4, (1,), (1,)) for i in range(6000)}
    write_pth(path, {"state_dict": content})
    tensors = read_state_dict(path)
    assert [float(t[0]) for t in tensors.values()] == [0, 1, 2, 3] * 1500


@pytest.mark.parametrize("form", FORMS)
def test_texts_that_widen_are_bounded(path, form):
    # One character beyond 16 bits makes all of them four bytes wide.
    data = "\U0001f600".encode() + b"a" * 30_000_000
    write_pickle(path, b"\x80\x02" + text(data) + b".", form)
    assert_refused(path, "more objects than", memory=True)
    write_pth(path, {"config": "größe \U0001f600 " * 10_000})
    assert read_pth(path) == {"config": "größe \U0001f600 " * 10_000}


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_archives_are_not_unpacked(path, compress):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("pax")
        info.size = 30 * MIB
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    path.write_bytes(compress(buffer.getvalue()))
    before = time.process_time()
    assert_refused(path, r"it is compressed \(.*unpack it first")
    assert time.process_time() - before < 0.1


def test_a_large_directory_is_refused(path):
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, *[0] * 10)
    entries = entry * (2 * LENGTH // len(entry))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, len(entries), 0, 0)
    path.write_bytes(entries + end)
    assert_refused(path, "directory has", memory=True)


def test_members_are_read_once_and_are_small(path):
    content = {"a": np.ones(4, np.float32)}
    write_pth(path, content, byteorder=bytes(10**6))
    assert_refused(path, "'weights/byteorder' has 1000000 bytes; expected at most 16")
    # Many entries of the directory for the same bytes.
    size = 4_000_000
    storage = np.zeros(size // 4, np.float32)
    write_pth(path, {"a": storage, "b": np.ones_like(storage)})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("weights/data/0").header_offset
        second = archive.getinfo("weights/data/1").header_offset
    directory = data.index(b"PK\x01\x02")
    at = data.index(struct.pack("<I", second), directory)
    data = data[:at] + struct.pack("<I", first) + data[at + 4 :]
    path.write_bytes(data)
    assert_refused(path)


def test_storages_in_another_byte_order_are_swapped_once(path):
    storage = np.arange(10**6, dtype=np.uint32)
    content = {str(i): View(storage, i, (4,), (1,)) for i in range(100)}
    write_pth(path, content, byte_order="big")
    with traced(1.5 * storage.nbytes + 2e6):
        tensors = read_state_dict(path)
    np.testing.assert_array_equal(tensors["99"], [99, 100, 101, 102])
    with pytest.raises(ValueError, match="read-only"):
        tensors["0"][...] = 1


def test_the_file_is_held_once(path):
    storage = np.arange(10 * MIB, dtype=np.float32)
    write_pth(path, {"a": storage})
    with traced(1.2 * storage.nbytes):
        tensors = read_state_dict(path)
    np.testing.assert_array_equal(tensors["a"], storage)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02c" + b"\x1b[31m" * 10**6 + b"\nb\n.",
        b"\x80\x02c" + b"\x1b[31m" * 100 + b"\nb\n.",
        b"\x80\x04" + text(b"\x1b[31m" * 10**6) + text(b"b") + b"\x93.",
        b"\x80\x02" + text(b"\xff" * 10**6) + b".",
        b"\x80\x02\x1b.",
        b"\x80\x02" + IDENTIFIER.replace(text(b"0"), text(b"\x1b" * 10**6)) + b".",
        b"\x80\x02" + IDENTIFIER.replace(b"K\x04", b"\x8a\xff" + b"\x7f" * 255) + b".",
    ],
    ids=lambda value: repr(value[:9]),
)
def test_error_lines_are_bounded_and_printable(path, pickled):
    write_pickle(path, pickled)
    assert_refused(path)


def test_error_lines_of_archives_are_bounded_and_printable(path):
    name = "\x1b[31m" * 10_000
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/data.pkl", b"\x80\x02N.")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x1b[31m/", b"\x1b[32m/", 1))
    assert_refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/data.pkl", b"\x80\x02N.", zipfile.ZIP_DEFLATED)
    assert_refused(path, "compressed")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_only_regular_files_of_a_sane_size_are_read(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"weights.{suffix}' is a pipe"):
        read_state_dict(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="a device"):
        read_state_dict(path)
    path.unlink()
    path.touch()
    for size in (10 * 10**9, 5 * 10**9):
        os.truncate(path, size)
        assert_refused(path)


def test_files_without_checksums_are_read(path):
    # torch.serialization.set_crc32_options(False)
    write_pth(path, {"a": np.ones(4, np.float32)})
    data = path.read_bytes()
    checksum = zlib.crc32(np.ones(4, np.float32).tobytes())
    path.write_bytes(data.replace(struct.pack("<I", checksum), bytes(4)))
    np.testing.assert_array_equal(read_state_dict(path)["a"], np.ones(4))


def write_safetensors(path, header, data=b""):
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(name, dtype="U8", shape="0", offsets="0,0"):
    return (
        f'"{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{offsets}]}}'
    )


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("{" + ",".join(entry(i) for i in range(90_000)) + "}", "header claims"),
        ("{" + entry("a", shape="1," * 10**6 + "1", offsets="0,1") + "}", "dimensions"),
        ("{" + entry("\\u001b" * 10**5, "F4", "2", "0,1") + "}", "element type F4"),
        ("{" + entry("a", "\\u001b" * 10**5) + "}", "unknown variant"),
        ("[" * 10**6, "invalid"),
        ("{" + entry("a", shape=str(2**63), offsets="0,0") + "}", None),
        ("{" + entry("a", shape=f"{2**62},{2**62}", offsets="0,0") + "}", None),
        ("{" + entry("a", shape="2", offsets="0,2") + "}", None),
    ],
    ids=range(8),
)
def test_headers_of_safetensors_are_bounded(tmp_path, header, match):
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, header.encode(), b"1")
    assert_refused(path, match)
