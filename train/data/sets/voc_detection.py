"""VOC's objects, from a VOCdevkit folder; see `voc_folder` for folders and splits.

Objects marked `difficult` are not trained on; in evaluation they are neither hit nor
miss.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import tensorflow_datasets as tfds

from train.data import examples
from train.data.sets import voc_annotations
from train.data.sets.mistakes import Mistakes, read_all, refusal
from train.data.sets.user_folder import FoundImage
from train.data.sets.voc_folder import CLASSES, VocFolderConfig, parts_of, read_names

CATEGORIES = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]


class Entry(NamedTuple):
    """Files of an image."""

    image: Path
    annotation: Path


@dataclasses.dataclass(kw_only=True)
class VocDetectionConfig(VocFolderConfig):
    """A split of a VOCdevkit folder; its lists are those of ImageSets/Main."""

    def __post_init__(self):
        self._parts = parts_of(self.split)
        super().__post_init__()
        for part in self._parts:
            self.year_folder(part.year)

    @property
    def judged_by(self) -> str:
        """As the challenge of the year; of several, as the last."""
        old = all(part.year < 2010 for part in self._parts)
        return "voc_11point" if old else "voc_area"

    def categories(self, split: str) -> list[dict[str, Any]]:
        """VOC's 20 classes; the lists of the split are read too."""
        del split
        self.entries()
        return list(CATEGORIES)

    def entries(self) -> list[Entry]:
        """The images of the split.

        Raises:
          FileNotFoundError: A list is missing.
          ValueError: It is broken.
        """
        entries = []
        for part in self._parts:
            folder = self.year_folder(part.year)
            names = read_names(self, folder / "ImageSets/Main" / f"{part.name}.txt")
            entries += (
                Entry(
                    folder / "JPEGImages" / f"{name}.jpg",
                    folder / "Annotations" / f"{name}.xml",
                )
                for name in names
            )
        return list(dict.fromkeys(entries))


class VocDetection(tfds.core.GeneratorBasedBuilder):
    """The split of a VOCdevkit folder that its config names."""

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, *, config: VocDetectionConfig, **options):
        self._config = config
        super().__init__(config=config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images and objects of a VOCdevkit folder.",
            features=examples.features(),
            metadata=examples.metadata(CATEGORIES),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        split = self._config.stored_as(self._config.split)
        return {split: self._generate_examples(split)}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        index = examples.start_index(self.info, split)
        left_out, tagged, ids = Counter(), 0, 0
        entries = self._config.entries()
        what = f"{self.name} of {self._config.folder}, {self._config.split}"
        for number, (image, objects) in read_all(
            entries, self._read, self._refusal, what=what
        ):
            size = image.height, image.width
            for annotation in objects:
                ids += 1
                annotation.update(id=ids, image_id=number + 1)
            reasons = [examples.why_left_out(a, *size) for a in objects]
            left_out.update(reason for reason in reasons if reason)
            tagged += image.tagged
            examples.index_image(index, *size, reasons.count(None))
            file = entries[number].image.relative_to(self._config.root)
            yield (
                number,
                {
                    "image_id": number + 1,
                    "height": image.height,
                    "width": image.width,
                    "file_name": file.as_posix(),
                    "annotations": json.dumps(objects),
                },
            )
        examples.note(
            self.info,
            split,
            left_out=left_out,
            bad_masks={},
            without_mask=sum(index["num_boxes"]),
            tagged=tagged,
        )

    def _read(self, entry: Entry) -> tuple[FoundImage, list[dict[str, Any]]]:
        """Reads an image and its objects.

        Raises:
          Mistakes: What is wrong with either.
        """
        config, image = self._config, None
        errors: list[ValueError | OSError] = []
        try:
            image = config.look_at(entry.image)
        except (ValueError, OSError) as error:
            errors.append(error)
        size = None if image is None else (image.height, image.width)
        try:
            data = config.read_file(
                entry.annotation,
                "file of annotations",
                max_bytes=voc_annotations.MAX_BYTES,
            )
            objects = voc_annotations.read_objects(data, entry.annotation, size)
        except Mistakes as error:
            errors += error.errors
        except (ValueError, OSError) as error:
            errors.append(error)
        if errors:
            raise Mistakes(errors)
        return cast(FoundImage, image), objects

    def _refusal(self, errors: Sequence[ValueError | OSError]) -> Exception:
        return refusal(self._config.root, errors, "mistakes")
