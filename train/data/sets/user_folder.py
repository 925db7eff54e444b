"""A split of a data set that lies in a folder of the user's, as its owners publish it.

Image files stay where they are and are read there. Every one is looked at once, so that
one that is missing or cut short ends the preparation and not a run in its third hour. A
file that changed since (its size or time of change) is noticed at the next start, and
the split prepared anew.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from dcn_jax.images.files import check_image, read_file
from dcn_jax.images.headers import MAX_PIXELS, turned_size
from dcn_jax.quoting import one_line
from dcn_jax.regular_file import open_regular
from train.data.prepared import PreparedConfig


class FoundImage(NamedTuple):
    """What an image file says of itself."""

    height: int  # as the configuration wants it shown
    width: int
    tagged: bool  # whether it has an orientation tag that is not "upright"


@dataclasses.dataclass(kw_only=True)
class UserFolderConfig(PreparedConfig):
    """Where a split of the user's data set lies.

    Attributes:
      folder: The data set's folder.
      split: Its name.
      upright: Whether photographs are turned as their orientation tag says; the
        annotations then mean the images as they are shown.
      max_pixels: Larger images (height * width) are refused before they are decoded.
    """

    folder: str
    split: str
    upright: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        self.image_folder = self.root = existing_folder("folder", self.folder)
        digest = hashlib.sha1(os.fsencode("\n".join(self.place())))
        self.name = f"{self.stored_as(self.split)}_{digest.hexdigest()[:8]}"
        # State of what was read: size and time of change by the file's path.
        self.read_files: dict[str, list[int]] = {}

    def place(self) -> list[str]:
        """What tells this data set from others of its kind."""
        return [str(self.root.resolve()), self.split, str(self.upright)]

    def listing(self) -> Any:
        """What JSON can hold of the files that there are, where no file lists them."""
        return None

    @property
    def changes(self) -> bool:
        """The user's files may change."""
        return True

    def origin(self) -> Any:
        """The state of the files that were read."""
        return {"files": self.read_files, "listing": self.listing()}

    def is_current(self, origin: Any) -> bool:
        """Whether the files are in that state still."""
        try:
            files = origin["files"].items()
            return origin["listing"] == self.listing() and all(
                file_state(Path(path)) == state for path, state in files
            )
        except (OSError, KeyError, TypeError, AttributeError):
            return False

    def image_path(self, file_name: str) -> Path:
        """Below the folder."""
        return self.root / file_name

    def read_file(self, path: Path, what: str, *, max_bytes: int) -> bytes:
        """Reads a file that describes images.

        Raises:
          FileNotFoundError: There is none; the message says `what` it is.
          ValueError: It is a folder, a pipe or a device, or too large.
        """
        self._take_note(path)
        if not path.exists():
            raise FileNotFoundError(f"{one_line(str(path), 300)}: no such {what}")
        with open_regular(path, max_bytes=max_bytes) as file:
            return file.read(max_bytes + 1)

    def look_at(self, path: Path) -> FoundImage:
        """Looks at an image file; see `check_image`.

        Raises:
          FileNotFoundError: There is none.
          ValueError: It is no regular file, broken, or too large.
        """
        self._take_note(path)
        data = read_file(path, self.max_pixels)
        header = check_image(data, str(path), self.max_pixels)
        stored = header.height, header.width
        height, width = turned_size(header) if self.upright else stored
        return FoundImage(height, width, header.orientation != 1)

    def _take_note(self, path: Path) -> None:
        # Before the content: what changes meanwhile differs from it later.
        if path.exists():
            self.read_files[str(path)] = file_state(path)


def existing_folder(field: str, name: str) -> Path:
    """Returns the absolute path of the folder that a field names.

    Raises:
      FileNotFoundError: There is none.
    """
    folder = Path(os.path.expanduser(name))
    if not name or not folder.is_dir():
        raise FileNotFoundError(f"`{field}` {name!r}: no such folder")
    return folder.absolute()


def file_state(path: Path) -> list[int]:
    """What changes with a file's content: size, and time of change in ns."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
