"""Whether the CUDA library has code for a device: XLA does not look."""

import importlib.util
import struct
from pathlib import Path

# nvcc's container of code: a header, then entries one after another.
_MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")  # magic, version, size of the header, of the entries
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, -, size of this, of the code, ..., sm
_MACHINE_CODE = 2


def capabilities() -> set[tuple[int, int]]:
    """Those that the library has machine code for.

    Raises:
      ImportError: The library is not built.
    """
    spec = importlib.util.find_spec("xla_ops._cuda")
    if spec is None or spec.origin is None:
        raise ImportError("xla_ops._cuda is not built; see scripts/build.sh")
    data = Path(spec.origin).read_bytes()
    found, begin = set(), data.find(_MAGIC)
    while begin >= 0:
        _, _, header, size = _HEADER.unpack_from(data, begin)
        entry, end = begin + header, begin + header + size
        while entry + _ENTRY.size <= min(end, len(data)):
            kind, _, own, code, *_, sm = _ENTRY.unpack_from(data, entry)
            if kind == _MACHINE_CODE:
                found.add(divmod(sm, 10))
            entry += own + code
        begin = data.find(_MAGIC, end)
    return found


def missing_code(capability: tuple[int, int]) -> str:
    """What is wrong with the library for a device of that capability, or ""."""
    found = capabilities()
    major, minor = capability
    if any(a == major and b <= minor for a, b in found):
        return ""
    names = ", ".join(f"sm_{a}{b}" for a, b in sorted(found)) or "no device"
    return f"the CUDA library has code for {names}, none for sm_{major}{minor}"
