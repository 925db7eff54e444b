"""Cityscapes' label maps, from the folder that its archives unpack to.

    FOLDER/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png ...
    FOLDER/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png ...

The label ids are mapped to the 19 classes that are judged; the others are ignored.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from train.data import examples, label_maps
from train.data.sets.cityscapes_labels import CLASSES, LABEL_IDS, train_ids
from train.data.sets.labelled_images import (
    LabelledImage,
    label_map_records,
    read_label_file,
    read_labelled,
)
from train.data.sets.user_folder import UserFolderConfig

CATEGORIES = [{"id": row.label_id, "name": row.name} for row in CLASSES]
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"
_TRAIN_IDS = train_ids()


@dataclasses.dataclass(kw_only=True)
class CityscapesConfig(UserFolderConfig):
    """A split of a Cityscapes folder: train, val or test."""

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.split, re.ASCII):
            raise ValueError(
                f"`split` is {self.split!r}; expected letters, digits and underscores"
            )
        super().__post_init__()
        self.image_folder = self.root / "leftImg8bit" / self.split
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"{self.image_folder}: no such folder of images")

    def categories(self, split: str) -> list[dict[str, Any]]:
        """The 19 classes; value v of a label map is the train id v."""
        del split
        self.images()
        return list(CATEGORIES)

    def images(self) -> list[Path]:
        """The images of the split, by city and name.

        Raises:
          FileNotFoundError: There are none.
        """
        images = sorted(self.image_folder.glob(f"*/*{_IMAGE}"))
        if not images:
            raise FileNotFoundError(
                f"{self.image_folder}: no images CITY/*{_IMAGE} in this folder"
            )
        return images

    def listing(self) -> Any:
        """Digest of the names of the images."""
        names = (str(path.relative_to(self.root)) for path in self.images())
        return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()

    def labels_of(self, image: Path) -> Path:
        """The file of an image's labels."""
        name = image.name.removesuffix(_IMAGE) + _LABELS
        return self.root / "gtFine" / self.split / image.parent.name / name


class CityscapesFine(tfds.core.GeneratorBasedBuilder):
    """The split of a Cityscapes folder that its config names, finely labelled."""

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, *, config: CityscapesConfig, **options):
        self._config = config
        super().__init__(config=config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images and label maps of a Cityscapes folder.",
            features=examples.features(label_maps=True),
            metadata=examples.metadata(CATEGORIES),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {self._config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        images = self._config.images()
        return label_map_records(self.info, self._config, images, self._read)

    def _read(self, image: Path) -> LabelledImage:
        labels = self._config.labels_of(image)
        return read_labelled(
            self._config,
            image,
            labels,
            lambda: self._label_map(labels),
            root=self._config.root,
        )

    def _label_map(self, path: Path) -> np.ndarray:
        label_ids = read_label_file(self._config, path)
        label_maps.check_labels(label_ids, LABEL_IDS, str(path), "Cityscapes")
        return _TRAIN_IDS[label_ids]
