"""A VOCdevkit folder: its years, its lists of images, and its classes.

    FOLDER/VOC2007/JPEGImages/000005.jpg ...
    FOLDER/VOC2007/Annotations/000005.xml ...
    FOLDER/VOC2007/SegmentationClass/000032.png ...
    FOLDER/VOC2007/ImageSets/{Main,Segmentation}/trainval.txt ...

A split is YEAR_LIST, such as 2007_test, or several joined by a plus sign:
2007_trainval+2012_trainval. An image that several of them name counts once.
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from dcn_jax.quoting import one_line, quoted
from train.data.sets.mistakes import listed
from train.data.sets.user_folder import UserFolderConfig

# In the order of the labels, from 1.
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep",
    "sofa", "train", "tvmonitor",
)  # fmt: skip

# A list of a million names has less.
_MAX_LIST_BYTES = 2**24
# Of a file, without its ending and without a folder.
_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)


class Part(NamedTuple):
    """One term of a split."""

    year: int
    name: str  # of the list


def parts_of(split: str) -> list[Part]:
    """Takes a split apart.

    Raises:
      ValueError: One line: it is none.
    """
    parts = []
    for term in split.split("+"):
        found = re.fullmatch(r"(\d{4})_(\w+)", term, re.ASCII)
        if not found:
            raise ValueError(
                f"`split` is {quoted(split)}; expected YEAR_LIST, such as"
                " 2007_trainval, or several joined by +"
            )
        parts.append(Part(int(found[1]), found[2]))
    return parts


def read_names(config: UserFolderConfig, path: Path) -> list[str]:
    """Reads a list of images: a name on each line.

    Raises:
      FileNotFoundError: There is no such list.
      ValueError: One line that names the list and the lines at fault.
    """
    data = config.read_file(path, "list of images", max_bytes=_MAX_LIST_BYTES)
    lines = data.decode(errors="replace").splitlines()
    names = {number: line.strip() for number, line in enumerate(lines, start=1)}
    names = {number: name for number, name in names.items() if name}
    wrong = [
        f"line {number} is {quoted(name)}; expected the name of one image"
        for number, name in names.items()
        if not _NAME.fullmatch(name)
    ]
    shown = one_line(str(path), 300)
    if wrong:
        raise ValueError(f"{shown}: {listed(wrong, len(wrong), 'mistakes')}")
    if not names:
        raise ValueError(f"{shown} names no image")
    return list(dict.fromkeys(names.values()))


@dataclasses.dataclass(kw_only=True)
class VocFolderConfig(UserFolderConfig):
    """A split of a VOCdevkit folder; see `UserFolderConfig`."""

    def year_folder(self, year: int) -> Path:
        """Folder of a year.

        Raises:
          FileNotFoundError: There is none.
        """
        folder = self.root / f"VOC{year}"
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of the year {year}")
        return folder

    def stored_as(self, split: str) -> str:
        """The terms, joined by a word."""
        return split.replace("+", "_and_")
