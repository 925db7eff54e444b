"""Weight files of `torch.save`, old and new, of numpy and of safetensors."""

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from dcn_jax.weights import read_state_dict
from scripts.fuzz_files import pickles
from scripts.fuzz_files.bounded import Bounds

SUFFIXES = (".pth", ".pth", ".pth", ".pkl", ".pkl", ".safetensors")
REFUSALS = (ValueError,)


def bounds(size: int) -> Bounds:
    """Returns what reading a file of so many bytes may take."""
    return Bounds(seconds=2 + size / 20e6, memory=size * 3 // 2 + 200_000_000)


def read(path: Path) -> None:
    """Reads it, and looks at all that came of it."""
    size = path.stat().st_size
    for tensor in read_state_dict(path).values():
        assert tensor.size <= max(size, 1 << 24)
        assert not tensor.flags.writeable or tensor.size == 0
        tensor.reshape(-1)[:1].sum()


def write(rng: np.random.Generator, path: Path) -> str:
    """Writes the file of a case."""
    if rng.random() < 0.03:
        return _write_no_file(rng, path)
    what, data = _content(rng, path.suffix)
    if rng.random() < 0.3:
        what, data = what + ", damaged", _damaged(rng, data)
    path.write_bytes(data)
    return what


def _content(rng: np.random.Generator, suffix: str) -> tuple[str, bytes]:
    match suffix:
        case ".safetensors":
            return _safetensors(rng)
        case ".pkl":
            return _pkl(rng)
    return _legacy(rng) if rng.random() < 0.4 else _pth(rng)


def _write_no_file(rng: np.random.Generator, path: Path) -> str:
    match int(rng.integers(3)):
        case 0:
            os.mkfifo(path)
            return "pipe"
        case 1:
            path.symlink_to("/dev/zero")
            return "device"
        case _:
            data = _content(rng, path.suffix)[1]
            path.write_bytes(data)
            os.truncate(path, int(10 ** rng.uniform(8, 11)))
            return "sparse file"


def _damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """With bytes changed, cut, doubled or left out."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        # Often near the end, where the directory of an archive is.
        back = int(10 ** rng.uniform(0, np.log10(len(changed) + 1)))
        at = len(changed) - back if rng.random() < 0.5 else int(rng.integers(back + 1))
        at = max(0, min(at, len(changed) - 1))
        match int(rng.integers(5)):
            case 0:
                changed[at : at + 1] = rng.bytes(1)
            case 1:
                changed[at : at + 4] = struct.pack("<I", int(2 ** rng.uniform(0, 32)))
            case 2:
                changed[at : at + int(rng.integers(1, 100))] = b""
            case 3:
                changed[at:at] = changed[at : at + int(rng.integers(1, 1000))]
            case _:
                changed[at : at + 4] = b"\xff" * 4
        changed = changed or bytearray(1)
    return bytes(changed)


def _pth(rng: np.random.Generator) -> tuple[str, bytes]:
    counts = _counts(rng)
    storages = {f"data/{i}": bytes(4 * count) for i, count in enumerate(counts)}
    match int(rng.integers(9)):
        case 0:
            return "directory", _directory(rng)
        case 1:
            return _other_format(rng)
    what, pickled = _pickled(rng, pickles.state_dict(rng, counts, legacy=False))
    return what, _archive(rng, pickled, storages)


def _legacy(rng: np.random.Generator) -> tuple[str, bytes]:
    counts = _counts(rng)
    what, pickled = _pickled(rng, pickles.state_dict(rng, counts, legacy=True))
    keys = b"".join(pickles.text(b"%d" % key) for key in range(len(counts)))
    system = pickles.text(b"little_endian") + b"\x88"
    parts = [
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        b"\x80\x02M\xe9\x03.",
        b"\x80\x02}" + system + b"s.",
        pickled,
        b"\x80\x02](" + keys + b"e.",
        *(struct.pack("<q", count) + bytes(4 * count) for count in counts),
    ]
    if rng.random() < 0.1:
        at = int(rng.integers(len(parts)))
        parts[at] = (b"", parts[at] * 2, pickles.flood(rng))[rng.integers(3)]
    return f"legacy, {what}", b"".join(parts)


def _pkl(rng: np.random.Generator) -> tuple[str, bytes]:
    what, pickled = _pickled(rng, pickles.arrays(rng, _counts(rng)))
    return f"numpy, {what}", pickled


def _counts(rng: np.random.Generator) -> list[int]:
    return [int(10 ** rng.uniform(0, 4)) for _ in range(int(rng.integers(1, 50)))]


def _pickled(rng: np.random.Generator, parts: list[bytes]) -> tuple[str, bytes]:
    """A pickle that holds these parts, some of them, or something else."""
    match int(rng.integers(7)):
        case 0:
            return "state dict", b"".join(parts)
        case 1:
            for _ in range(int(rng.integers(1, 4))):
                at, other = rng.integers(len(parts), size=2)
                parts[at] = parts[other] if rng.random() < 0.5 else b""
            return "shuffled state dict", b"".join(parts)
        case 2:
            return "damaged pickle", _damaged(rng, b"".join(parts))
        case 3:
            return "program", pickles.program(rng)
        case 4:
            return "flood", pickles.flood(rng)
        case 5:
            return "numbers as keys", pickles.numbered(rng)
    value = pickles.odd_value(rng) * int(rng.integers(1, 4))
    return "odd value", b"\x80\x02" + value + b"."


def _archive(
    rng: np.random.Generator, pickled: bytes, storages: dict[str, bytes]
) -> bytes:
    # Longer ones, of what is no text either, would be no name of a member.
    root = pickles.odd_text(rng)[:20_000] if rng.random() < 0.05 else b"archive"
    order = ["little", "big", "\x1b[31m"][rng.choice(3, p=[0.7, 0.25, 0.05])]
    members = {"data.pkl": pickled, "byteorder": order.encode(), **storages}
    if rng.random() < 0.1:
        members.pop(list(members)[rng.integers(len(members))])
    buffer = io.BytesIO()
    deflated = rng.random() < 0.05
    with zipfile.ZipFile(buffer, "w", 8 if deflated else 0) as archive:
        for name, data in members.items():
            archive.writestr(f"{root.decode(errors='replace')}/{name}", data)
    return buffer.getvalue()


def _directory(rng: np.random.Generator) -> bytes:
    """An archive of which little but its directory is there."""
    name = b"a/data.pkl" if rng.random() < 0.5 else pickles.odd_text(rng)[:60_000]
    numbers = [int(2 ** rng.uniform(0, 32)) if rng.random() < 0.3 else 0 for _ in "123"]
    count = int(10 ** rng.uniform(0, 5.5))
    entry = struct.pack(
        "<4s6H3L5H2L",
        *(b"PK\x01\x02", 20, 20, 0, 0, 0, 0, *numbers, len(name), *[0] * 5, 0),
    )
    entries = (entry + name) * max(1, min(count, 20_000_000 // (46 + len(name))))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, len(entries), 0, 0)
    return entries + end


def _other_format(rng: np.random.Generator) -> tuple[str, bytes]:
    """Archives and compressed files with much in them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = int(10 ** rng.uniform(0, 7.5))
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    data = buffer.getvalue()
    match int(rng.integers(4)):
        case 0:
            return "tar", data
        case 1:
            return "gzip", gzip.compress(data, 1)
        case 2:
            return "bzip2", bz2.compress(data, 1)
        case _:
            return "xz", lzma.compress(data, preset=0)


def _safetensors(rng: np.random.Generator) -> tuple[str, bytes]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    kinds = ("F32", "BF16", "I8", "F4", "F8_E4M3", "BOOL", "F8_E8M0", "C64", "\x1b")
    for i in range(int(10 ** rng.uniform(0, 3))):
        dtype = kinds[0 if rng.random() < 0.9 else rng.integers(len(kinds))]
        shape = rng.integers(0, 5, rng.integers(0, 5)).tolist()
        if rng.random() < 0.01:
            shape = [int(2 ** rng.uniform(0, 64)) for _ in shape]
        if rng.random() < 0.005:
            shape = [1] * int(10 ** rng.uniform(0, 6))
        size = min(4 * int(np.prod(np.asarray(shape, np.float64))), 10**6)
        name = (
            f"layer{i}"
            if rng.random() < 0.99
            else pickles.odd_text(rng).decode(errors="replace")
        )
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    match int(rng.integers(6)):
        case 0:
            text = _damaged(rng, text)
        case 1:
            unit = (b"[", b'{"a":', b"1,", b'"a":1,', b" ", b'"', b"\\u001b")
            text = unit[rng.integers(len(unit))] * int(10 ** rng.uniform(1, 6.6))
    length = len(text)
    if rng.random() < 0.1:
        length = int(2 ** rng.uniform(0, 64))
    return "safetensors", struct.pack("<Q", length) + text + bytes(at)
