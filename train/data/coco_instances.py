"""A user's own COCO folder: image files and one instances JSON a split.

    FOLDER/train2017/000000000009.jpg ...
    FOLDER/annotations/instances_train2017.json

Other layouts are told by `images` and `annotations`. The encoded files are stored as
they are; every one is decoded once here, so that a broken file ends the preparation
and not a run in its third hour.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import tensorflow_datasets as tfds

from train.data import coco_annotations, examples, transforms


@dataclasses.dataclass(kw_only=True)
class CocoInstancesConfig(tfds.core.BuilderConfig):
    """Where a split of the user's data set lies.

    Attributes:
      folder: The data set's folder.
      split: Its name, of letters, digits and underscores.
      images: Folder of the images, relative to `folder`; `{split}` stands for `split`.
      annotations: The instances JSON, likewise.
      max_pixels: Larger images (height * width) are refused before they are decoded.
      name: Made here from the split and the annotations' content, so that a changed
        JSON is prepared anew. (A changed image alone is not noticed.)
    """

    folder: str
    split: str
    images: str = "{split}"
    annotations: str = "annotations/instances_{split}.json"
    max_pixels: int = transforms.MAX_PIXELS
    name: str = ""

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.split, re.ASCII):
            raise ValueError(
                f"`split` is {self.split!r}; expected letters, digits and underscores"
            )
        folder = Path(self.folder).expanduser()
        if not self.folder or not folder.is_dir():
            raise FileNotFoundError(f"`folder` {self.folder!r}: no such folder")
        self.image_folder = folder / self.images.replace("{split}", self.split)
        self.json_path = folder / self.annotations.replace("{split}", self.split)
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"{self.image_folder}: no such folder of images")
        if not self.json_path.is_file():
            raise FileNotFoundError(f"{self.json_path}: no such annotation file")
        digest = hashlib.sha1(os.fsencode(self.image_folder.resolve()))
        digest.update(self.json_path.read_bytes())
        self.name = f"{self.split}_{digest.hexdigest()[:12]}"


class CocoInstances(tfds.core.GeneratorBasedBuilder):
    """The split of a COCO folder that its config names."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: CocoInstancesConfig, **options):
        self._config = config
        super().__init__(config=config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images and instance annotations of a COCO folder.",
            features=examples.features(),
            metadata=examples.metadata([]),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {self._config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        content = coco_annotations.read_instances(self._config.json_path)
        cast(tfds.core.MetadataDict, self.info.metadata).update(
            examples.metadata(content.categories)
        )
        index = examples.start_index(self.info, self._config.split)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(content.images), 64):
                images = content.images[start : start + 64]
                encoded = list(pool.map(self._read, images))
                for number, (image, data) in enumerate(
                    zip(images, encoded, strict=True), start
                ):
                    annotations = content.annotations[image["id"]]
                    height, width = image["height"], image["width"]
                    boxes, _ = examples.usable_boxes(annotations, height, width)
                    examples.index_image(index, height, width, len(boxes))
                    yield (
                        number,
                        {
                            "image": data,
                            "image_id": image["id"],
                            "height": height,
                            "width": width,
                            "file_name": image["file_name"],
                            "annotations": json.dumps(annotations),
                        },
                    )

    def _read(self, image: dict[str, Any]) -> bytes:
        """Reads an image file, and checks that it is what the JSON says."""
        path = self._config.image_folder / image["file_name"]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such image file")
        data = path.read_bytes()
        found = transforms.image_size(data, str(path))
        expected = image["height"], image["width"]
        if found != expected:
            raise ValueError(
                f"{path} has (height, width) {found};"
                f" {self._config.json_path} says {expected}"
            )
        transforms.decode_image(data, str(path), self._config.max_pixels)
        return data
