"""A user's own COCO folder: image files and one instances JSON a split.

    FOLDER/train2017/000000000009.jpg ...
    FOLDER/annotations/instances_train2017.json

Other layouts are told by `images` and `annotations`. The image files stay where they
are and are read there. Every one is looked at once here, so that one that is missing,
of another size or cut short ends the preparation and not a run in its third hour.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import tensorflow_datasets as tfds

from dcn_jax.images.files import check_image, read_file
from dcn_jax.images.headers import MAX_PIXELS, turned_size
from dcn_jax.quoting import one_line
from train.data import examples
from train.data.prepared import PreparedConfig
from train.data.sets import coco_annotations
from train.data.sets.mistakes import read_all, refusal
from train.data.sets.user_folder import existing_folder, file_state

# Of the files in the place of a missing one, so many are named.
_SHOWN = 5


@dataclasses.dataclass(kw_only=True)
class CocoInstancesConfig(PreparedConfig):
    """Where a split of the user's data set lies.

    A changed JSON or image file (its size or time of change) is prepared anew.

    Attributes:
      folder: The data set's folder.
      split: Its name, of letters, digits and underscores.
      images: Folder of the images, relative to `folder`; `{split}` stands for `split`.
      annotations: The instances JSON, likewise.
      upright: Whether photographs are turned as their orientation tag says; the JSON
        then means the images as they are shown. COCO's means the stored pixels.
      max_pixels: Larger images (height * width) are refused before they are decoded.
    """

    folder: str
    split: str
    images: str = "{split}"
    annotations: str = "annotations/instances_{split}.json"
    upright: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.split, re.ASCII):
            raise ValueError(
                f"`split` is {self.split!r}; expected letters, digits and underscores"
            )
        folder = existing_folder("folder", self.folder)
        self.image_folder = folder / self.images.replace("{split}", self.split)
        self.json_path = folder / self.annotations.replace("{split}", self.split)
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"{self.image_folder}: no such folder of images")
        if not self.json_path.exists():
            raise FileNotFoundError(
                f"{self.json_path}: no such annotation file{self._beside()}"
            )
        place = (self.image_folder.resolve(), self.json_path.resolve(), self.upright)
        digest = hashlib.sha1(os.fsencode("\n".join(map(str, place))))
        self.name = f"{self.split}_{digest.hexdigest()[:8]}"
        # State of what was read: the JSON's digest, and by file name size and time.
        self.read_json = ""
        self.read_images: dict[str, list[int]] = {}
        self._instances: coco_annotations.Instances | None = None

    def _beside(self) -> str:
        """Which annotation files there are in the place of one that is missing."""
        names = sorted(path.name for path in self.json_path.parent.glob("*.json"))
        shown = ", ".join(one_line(name, 100) for name in names[:_SHOWN])
        return f"; its folder has {shown}" if names else ""

    def categories(self, split: str) -> list[dict[str, Any]]:
        """Those of the JSON, whose content is kept until it is prepared."""
        del split
        self._instances = self.read_instances()
        return self._instances.categories

    def read_instances(self) -> coco_annotations.Instances:
        """Reads the JSON, or hands over what was read already."""
        instances, self._instances = self._instances, None
        if instances is None:
            self.read_json = json_digest(self.json_path)
            instances = coco_annotations.read_instances(self.json_path, self.max_pixels)
        return instances

    def image_path(self, file_name: str) -> Path:
        """In the folder of images."""
        return self.image_folder / file_name

    @property
    def changes(self) -> bool:
        """The user's files may change."""
        return True

    def origin(self) -> Any:
        """The state of the files that were read."""
        return {"annotations": self.read_json, "images": self.read_images}

    def is_current(self, origin: Any) -> bool:
        """Whether the files are in that state still."""
        try:
            images = origin["images"].items()
            same = origin["annotations"] == json_digest(self.json_path)
            current = same and all(
                file_state(self.image_folder / name) == state for name, state in images
            )
        except (OSError, KeyError, TypeError, AttributeError):
            return False
        if current:
            # Another process has prepared what this one was about to.
            self._instances = None
        return current


def json_digest(path: Path) -> str:
    """Digest of an annotation file."""
    digest = hashlib.sha256()
    with coco_annotations.open_instances(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class CocoInstances(tfds.core.GeneratorBasedBuilder):
    """The split of a COCO folder that its config names."""

    VERSION = tfds.core.Version("3.0.0")

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
        config = self._config
        content = config.read_instances()
        metadata = cast(tfds.core.MetadataDict, self.info.metadata)
        metadata.update(examples.metadata(content.categories))
        index = examples.start_index(self.info, config.split)
        left_out, without_mask, tagged = Counter(), 0, 0
        what = f"{self.name} of {config.folder}, {config.split}"
        for number, is_tagged in read_all(
            content.images, self._look, self._refusal, what=what
        ):
            image = content.images[number]
            annotations = content.annotations[image["id"]]
            height, width = image["height"], image["width"]
            reasons = [examples.why_left_out(a, height, width) for a in annotations]
            left_out.update(reason for reason in reasons if reason)
            count = reasons.count(None)
            without_mask += sum(
                reason is None and not annotation["segmentation"]
                for reason, annotation in zip(reasons, annotations, strict=True)
            )
            tagged += is_tagged
            examples.index_image(index, height, width, count)
            yield (
                number,
                {
                    "image_id": image["id"],
                    "height": height,
                    "width": width,
                    "file_name": image["file_name"],
                    "annotations": json.dumps(annotations),
                },
            )
        examples.note(
            self.info,
            config.split,
            left_out=left_out,
            bad_masks=content.bad_masks,
            without_mask=without_mask,
            tagged=tagged,
        )

    def _look(self, image: dict[str, Any]) -> bool:
        """Checks that an image file is what the JSON says.

        Returns:
          Whether it has an orientation tag that is not "upright".

        Raises:
          FileNotFoundError: There is none.
          ValueError: It is another image, or broken.
        """
        config, name = self._config, image["file_name"]
        path = config.image_folder / name
        # Before the content: what changes meanwhile differs from it later.
        state = file_state(path) if path.exists() else []
        data = read_file(path, config.max_pixels)
        config.read_images[name] = state
        header = check_image(data, str(path), config.max_pixels)
        expected = image["height"], image["width"]
        stored, shown = (header.height, header.width), turned_size(header)
        if (shown if config.upright else stored) != expected:
            found = shown if config.upright else stored
            raise ValueError(
                f"{one_line(str(path), 300)} has (height, width) {found};"
                f" {one_line(str(config.json_path), 300)} says {expected}"
                + _tag_hint(header.orientation, expected == stored, config.upright)
            )
        return header.orientation != 1

    def _refusal(self, errors: Sequence[ValueError | OSError]) -> Exception:
        """What is wrong with the images."""
        json_path = self._config.json_path
        return refusal(
            self._config.image_folder,
            errors,
            "broken images",
            {str(json_path): json_path.name},
        )


def _tag_hint(orientation: int, stored_fits: bool, upright: bool) -> str:
    """What may explain a wrong size, where a photograph was held upright."""
    if orientation < 5 or stored_fits != upright:
        return ""
    if upright:
        return (
            f". Its orientation tag ({orientation}) was applied; the JSON means the"
            " stored pixels (`upright` is True)"
        )
    return (
        f". Its orientation tag ({orientation}) was not applied; the JSON may mean the"
        " image as it is shown (`upright` is False)"
    )
