"""Zip archives as `torch.save` writes them: members stored, not compressed."""

import io
import struct
import zipfile
from typing import BinaryIO

import numpy as np

from dcn_jax.quoting import one_line, quoted

# Bytes of the archive's directory; torch writes about 100 a tensor.
_MAX_DIRECTORY = 2 << 20
_CHUNK = 1 << 20


class Archive:
    """The members of an archive.

    What is read of them together is no more than the file has, whatever its directory
    claims.

    Args:
      file: The archive, which stays open as long as it is read.

    Raises:
      ValueError: It is no archive, or is damaged; here and in the methods.
    """

    def __init__(self, file: BinaryIO):
        self._unread = file.seek(0, io.SEEK_END)
        try:
            self._zip = zipfile.ZipFile(_ShortReads(file))
        except _DAMAGES as error:
            raise _damaged(error) from error
        self._members = {info.filename: info for info in self._zip.infolist()}
        self.names = tuple(self._members)

    def read(self, name: str, max_bytes: int | None = None) -> np.ndarray:
        """A member's bytes, as uint8; of more than `max_bytes` an error."""
        info, shown = self._members.get(name), quoted(name)
        if info is None:
            raise ValueError(f"it has no member {shown}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its member {shown} is compressed; torch stores them")
        if max_bytes is not None and info.file_size > max_bytes:
            raise ValueError(
                f"its member {shown} has {info.file_size} bytes; expected at most "
                f"{max_bytes}"
            )
        self._unread -= info.file_size
        if (
            info.compress_size != info.file_size
            or info.header_offset < 0
            or self._unread < 0
        ):
            raise ValueError(
                f"its member {shown} claims {info.file_size} bytes; the file has not "
                "so many"
            )
        if info.CRC == 0:
            # What torch writes where it was told to compute no checksums.
            info.CRC = None  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return self._read(info, shown)
        except _DAMAGES as error:
            raise _damaged(error) from error

    def _read(self, info: zipfile.ZipInfo, shown: str) -> np.ndarray:
        # In parts: ZipFile.read would hold all of it twice.
        data = np.empty(info.file_size, np.uint8)
        at = 0
        with self._zip.open(info) as member:
            while part := member.read(_CHUNK):
                data[at : at + len(part)] = np.frombuffer(part, np.uint8)
                at += len(part)
        if at != data.size:
            raise ValueError(f"its member {shown} is cut short")
        return data


_DAMAGES = (
    *(zipfile.BadZipFile, RuntimeError, EOFError, struct.error),
    *(OverflowError, OSError, UnicodeError),
)


def _damaged(error: Exception) -> ValueError:
    return ValueError(one_line(str(error), 200))


class _ShortReads:
    """A file of which only so much is read at once as a directory may be long.

    `ZipFile` makes an object of every entry of the directory that it reads.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(
                f"its directory has {size} bytes; expected at most {_MAX_DIRECTORY}"
            )
        # Without a size ZipFile reads the end of the file, which is short.
        return self._file.read(size if size >= 0 else _MAX_DIRECTORY)
