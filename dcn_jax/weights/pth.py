"""Files of pickled tensors (.pth, .pt, .pkl), read without torch.

Three formats, told apart by how a file begins.
"""

import os
from io import BufferedReader
from typing import Any

from dcn_jax.quoting import one_line, quoted
from dcn_jax.regular_file import open_regular
from dcn_jax.weights import torch_legacy
from dcn_jax.weights.numpy_pickle import read_numpy_pickle
from dcn_jax.weights.torch_legacy import read_legacy
from dcn_jax.weights.torch_zip import read_zip

# Bytes of the largest files that are read.
MAX_BYTES = 8 << 30

_PICKLE = b"\x80"
# Nothing is unpacked to find out what is in it.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def read_pth(path: str | os.PathLike) -> Any:
    """The object in a file of `torch.save`, or in a pickle of numpy arrays.

    Needs memory for the file's content once, and at most some 200 MB beyond.

    Args:
      path: A zip, as torch writes since version 1.6; the format before, five pickles
        in a row; or one pickle, as detectron2 publishes.

    Returns:
      Dictionaries, lists, tuples, text, numbers, and tensors: read-only numpy arrays,
      which may be views of one another's memory, or `PickledArray`. Whatever else the
      file would make is a `StandIn`.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It is no such file, is damaged, contains sizes that its bytes do not
        bear out, or is something else than plain data; the message names the file, and
        is short and printable whatever stands in it.
    """
    with open_regular(path, max_bytes=MAX_BYTES) as file:
        try:
            return _read(file)
        except (ValueError, MemoryError) as error:
            reason = one_line(str(error), 400) or "not enough memory"
            raise ValueError(
                f"cannot read {quoted(os.fspath(path), 500)}: {reason}"
            ) from error


def _read(file: BufferedReader) -> Any:
    start = file.read(512)
    if torch_legacy.MAGIC in start[:32]:
        return read_legacy(file)
    if start.startswith(_PICKLE):
        return read_numpy_pickle(file)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"it is compressed ({name}), which is not read; unpack it first"
            )
    if start[257:262] == b"ustar":
        raise ValueError(
            "it is a tar archive, a format of torch before 0.2, which is not read; "
            "save it again with a newer torch"
        )
    return read_zip(file)
