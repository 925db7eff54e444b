"""VOC's label maps, and SBD's beside them; see `voc_folder` for folders and splits.

The lists are those of ImageSets/Segmentation. With the term `sbd` in a split, as in
2012_train+sbd, those images of SBD come after the others that they do not name, and no
image of VOC 2012's list `val` is in it, which SBD's own split does not keep apart. With
the whole of both, 10582 images.

    SBD/img/2008_000002.jpg ...
    SBD/cls/2008_000002.mat ...
    SBD/train.txt, SBD/val.txt

SBD is the folder `benchmark_RELEASE/dataset` of what its authors publish. It labels no
borders between objects; VOC's do, by 255, which is ignored.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from dcn_jax.categories import BACKGROUND
from dcn_jax.images.palette import voc_palette
from dcn_jax.quoting import one_line
from train.data import examples, label_maps
from train.data.sets import mat_files
from train.data.sets.labelled_images import (
    LabelledImage,
    label_map_records,
    read_label_file,
    read_labelled,
)
from train.data.sets.user_folder import existing_folder
from train.data.sets.voc_folder import CLASSES, VocFolderConfig, parts_of, read_names

CATEGORIES = [
    {"id": label, "name": name} for label, name in enumerate((BACKGROUND, *CLASSES))
]
_SBD = "sbd"
# Folder of SBD's images; those of VOC lie in VOC2007, say.
_SBD_IMAGES = "img"
# SBD's files have a few kB, and unpacked less than a MB.
_MAX_MAT_BYTES = 2**22
_MAX_UNPACKED = 2**24
_PALETTE = voc_palette()


class Entry(NamedTuple):
    """Files of an image."""

    image: Path
    label_map: Path


@dataclasses.dataclass(kw_only=True)
class VocSegmentationConfig(VocFolderConfig):
    """A split of a VOCdevkit folder.

    Attributes:
      sbd: SBD's folder, for a split with the term `sbd`.
    """

    sbd: str = ""

    def __post_init__(self):
        terms = self.split.split("+")
        self._with_sbd = _SBD in terms
        parts = "+".join(term for term in terms if term != _SBD)
        self._parts = parts_of(parts) if parts or not self._with_sbd else []
        if self._with_sbd:
            if not self.sbd:
                raise ValueError(
                    f"`split` is {self.split!r}, and `sbd` is ''; expected SBD's folder"
                )
            self.sbd_root = existing_folder("sbd", self.sbd)
        super().__post_init__()
        for part in self._parts:
            self.year_folder(part.year)

    def place(self) -> list[str]:
        """With SBD's folder where the split has it."""
        return super().place() + ([str(self.sbd_root)] if self._with_sbd else [])

    def image_path(self, file_name: str) -> Path:
        """Below VOC's folder, or SBD's."""
        if file_name.startswith(f"{_SBD_IMAGES}/"):
            return self.sbd_root / file_name
        return super().image_path(file_name)

    def categories(self, split: str) -> list[dict[str, Any]]:
        """The background and VOC's 20 classes; the lists of the split are read too."""
        del split
        self.entries()
        return list(CATEGORIES)

    def entries(self) -> list[Entry]:
        """The images of the split.

        Raises:
          FileNotFoundError: A list is missing.
          ValueError: It is broken.
        """
        entries: dict[str, Entry] = {}
        for part in self._parts:
            folder = self.year_folder(part.year)
            for name in read_names(self, _list(folder, part.name)):
                entries[name] = Entry(
                    folder / "JPEGImages" / f"{name}.jpg",
                    folder / "SegmentationClass" / f"{name}.png",
                )
        if self._with_sbd:
            root = self.sbd_root
            for split in ("train", "val"):
                for name in read_names(self, root / f"{split}.txt"):
                    image = root / _SBD_IMAGES / f"{name}.jpg"
                    entries.setdefault(name, Entry(image, root / f"cls/{name}.mat"))
            for name in read_names(self, _list(self.year_folder(2012), "val")):
                entries.pop(name, None)
        return list(entries.values())


def _list(folder: Path, name: str) -> Path:
    return folder / "ImageSets/Segmentation" / f"{name}.txt"


class VocSegmentation(tfds.core.GeneratorBasedBuilder):
    """The split of a VOCdevkit folder, and of SBD, that its config names."""

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, *, config: VocSegmentationConfig, **options):
        self._config = config
        super().__init__(config=config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images and label maps of a VOCdevkit folder, and of SBD.",
            features=examples.features(label_maps=True),
            metadata=examples.metadata(CATEGORIES),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        split = self._config.stored_as(self._config.split)
        return {split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        entries = self._config.entries()
        return label_map_records(self.info, self._config, entries, self._read)

    def _read(self, entry: Entry) -> LabelledImage:
        sbd = entry.label_map.suffix == ".mat"
        return read_labelled(
            self._config,
            entry.image,
            entry.label_map,
            lambda: self._label_map(entry.label_map, sbd=sbd),
            root=self._config.sbd_root if sbd else self._config.root,
        )

    def _label_map(self, path: Path, *, sbd: bool) -> np.ndarray:
        name = str(path)
        if sbd:
            label_map = self._sbd_label_map(path)
        else:
            label_map = read_label_file(self._config, path, _PALETTE)
        label_maps.check_labels(label_map, range(len(CATEGORIES)), name, "VOC")
        return label_map

    def _sbd_label_map(self, path: Path) -> np.ndarray:
        file = self._config.read_file(
            path, "label file of SBD", max_bytes=_MAX_MAT_BYTES
        )
        labels = mat_files.read_field(
            file, str(path), "GTcls", "Segmentation", max_bytes=_MAX_UNPACKED
        )
        if labels.dtype != np.uint8:
            raise ValueError(
                f"{one_line(str(path), 300)} has labels of the type {labels.dtype};"
                " expected uint8"
            )
        return np.ascontiguousarray(labels)
