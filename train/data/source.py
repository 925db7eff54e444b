"""Random access to a prepared data set: decoded images with their usable objects."""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow_datasets as tfds

from dcn_jax.images.files import decode_image, read_file
from dcn_jax.images.headers import MAX_PIXELS
from dcn_jax.quoting import one_line
from train.data import examples, label_maps, prepared
from train.data.sets import DATA_SETS
from train.rules import check_fields, rule_of_type

# Fields of their configurations that are arguments of `make_source`.
_OF_MAKE_SOURCE = {"split", "max_pixels", "upright"}


class Example(NamedTuple):
    """One image and the ground truth that training can use."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    image_id: int
    boxes: np.ndarray  # [M, 4] float32, x1 y1 x2 y2 in pixels of `image`
    labels: np.ndarray  # [M] int32, from 1; see `Source.categories`
    # M, as of `train.data.examples.Objects`, in pixels of `image`.
    segmentations: Sequence[Any]
    # [H, W] uint8, see `train.data.label_maps`; None where the data set has none.
    label_map: np.ndarray | None = None


class Source:
    """A split of a prepared data set; `source[i]` is an `Example`.

    Attributes:
      categories: `{"id", "name"}` each; label k is `categories[k - 1]`.
      judged_by: How detections are judged: a key of `train.tasks.detection.METRICS`.
      sizes: [n, 2] int64, (height, width) of every image.
      num_boxes: [n] int64, usable boxes of every image.
      labelled: [n] int64, pixels of every image that its label map gives a category.
      left_out: Annotations that training does not use, counted by the reason.
      bad_masks: Masks that were not kept, likewise.
      without_mask: How many of the usable boxes have no mask.
      tagged: How many images have an orientation tag that is not "upright".
      upright: Whether they are turned as it says.
    """

    def __init__(
        self,
        copy: prepared.Copy,
        config: prepared.PreparedConfig,
        split: str,
        max_pixels: int = MAX_PIXELS,
        *,
        upright: bool = False,
    ):
        """Opens `split` of a prepared data set, by its name there.

        Its configuration says where images lie that are not in the copy.

        Raises:
          ValueError: If there is no such split, or an image of it is too large.
        """
        builder = copy.builder
        splits = sorted(builder.info.splits)
        if split not in splits:
            raise ValueError(
                f"`split` is {split!r}; {builder.name} has {', '.join(splits)}"
            )
        metadata = cast(tfds.core.MetadataDict, builder.info.metadata)
        index = metadata["index"][split]
        notes = metadata["notes"].get(split, {})
        self.categories = list(metadata["categories"])
        self.sizes = np.stack([index["height"], index["width"]], axis=1)
        self.judged_by = config.judged_by
        self.num_boxes = np.array(index["num_boxes"])
        self.labelled = np.array(index.get("labelled", [0] * len(self.sizes)))
        places = enumerate(index.get("image_id", []))
        self._places = {image_id: place for place, image_id in places}
        self.left_out: dict[str, int] = dict(notes.get("left_out", {}))
        self.bad_masks: dict[str, int] = dict(notes.get("bad_masks", {}))
        self.without_mask: int = notes.get("without_mask", 0)
        self.tagged: int = notes.get("tagged", 0)
        self.upright = upright
        too_large = np.flatnonzero(self.sizes.prod(1) > max_pixels)
        if len(too_large):
            height, width = self.sizes[too_large[0]]
            raise ValueError(
                f"{builder.name} holds an image of {height} x {width} pixels; at most"
                f" {max_pixels} are allowed (`max_pixels`)"
            )
        self._max_pixels = max_pixels
        self._copy, self._config = copy, config
        self._label_maps = "labelled" in index
        features = cast(tfds.features.FeaturesDict, builder.info.features)
        encoded = {"image", "label_map"} & features.keys()
        # The decorator of `as_data_source` hides its signature from type checkers.
        self._records = cast(Any, builder).as_data_source(
            split, decoders={name: tfds.decode.SkipDecoding() for name in encoded}
        )
        self._labels = {c["id"]: k for k, c in enumerate(self.categories, start=1)}

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        record = self._record(index)
        image = self._image(record, tuple(self.sizes[index].tolist()))
        objects = examples.usable_objects(
            json.loads(record["annotations"]), *image.shape[:2]
        )
        labels = np.array([self._labels[i] for i in objects.category_ids], np.int32)
        return Example(
            image,
            int(record["image_id"]),
            objects.boxes,
            labels,
            objects.segmentations,
            self._label_map(record) if self._label_maps else None,
        )

    def _image(self, record: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        """The image of a record, which had this (height, width) once."""
        name = record["file_name"].decode()
        path = self._config.image_path(name)
        if path is None:
            data = record["image"]
        else:
            data, name = read_file(path, self._max_pixels), str(path)
        image = decode_image(data, name, self._max_pixels, upright=self.upright)
        if image.shape[:2] != size:
            raise ValueError(
                f"{one_line(name, 300)} has (height, width) {image.shape[:2]}, and had"
                f" {size} when the data set was prepared. It is prepared again when the"
                " run is started again"
            )
        return image

    def label_map(self, image_id: int) -> np.ndarray:
        """The label map of an image, [H, W] uint8."""
        return self._label_map(self._record(self._places[image_id]))

    def _label_map(self, record: dict[str, Any]) -> np.ndarray:
        name = record["file_name"].decode()
        return label_maps.decode(record["label_map"], name, self._max_pixels)

    def _record(self, index: int) -> dict[str, Any]:
        try:
            return self._records[index]
        except RuntimeError as error:  # array_record's
            raise self._copy.unreadable(error) from error

    def ground_truth(self) -> dict[str, Any]:
        """All annotations, crowds and empty ones too, as `pycocotools` reads them.

        It knows one way to leave an object out of the count: what is marked `ignore`
        or `difficult` is told as a crowd.

        Returns:
          A new COCO-format dict; coordinates are pixels of the original images.
        """
        images, annotations = [], []
        for record in map(self._record, range(len(self))):
            images.append(
                {
                    "id": int(record["image_id"]),
                    "height": int(record["height"]),
                    "width": int(record["width"]),
                    "file_name": record["file_name"].decode(),
                }
            )
            for annotation in json.loads(record["annotations"]):
                marks = [annotation.pop(key, 0) for key in ("ignore", "difficult")]
                if any(marks):
                    annotation["iscrowd"] = 1
                annotations.append(annotation)
        return {
            "info": {},
            "licenses": [],
            "images": images,
            "categories": [dict(category) for category in self.categories],
            "annotations": annotations,
        }


class OrientationWarning(UserWarning):
    """Photographs have an orientation tag that is not applied."""


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuses options that a data set does not have, or of a wrong type.

    Args:
      name: As in `make_source`.
      options: As in `make_source`.

    Raises:
      ValueError: One line that names what is wrong as a field of `data.options`.
    """
    inherited = {f.name for f in dataclasses.fields(tfds.core.BuilderConfig)}
    rules = {
        field.name: rule_of_type(field.type)
        for field in dataclasses.fields(_classes(name)[1])
        if field.name not in inherited | _OF_MAKE_SOURCE
    }
    check_fields("data.options", options, rules)


def _classes(name: str) -> tuple[type, type]:
    """Returns the builder of a data set, and its configuration."""
    if name not in DATA_SETS:
        raise ValueError(f"`name` is {name!r}; expected one of {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


class DataSet:
    """A split of a data set that may be still to prepare.

    Attributes:
      categories: As those of the `Source`, known before an image is read.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str | Path,
        *,
        max_pixels: int = MAX_PIXELS,
        upright: bool = False,
        **options: Any,
    ):
        """Looks for the split; see `make_source`."""
        self._builder_class, config_class = _classes(name)
        arguments = {"split": split, "max_pixels": max_pixels, "upright": upright}
        fields = {field.name for field in dataclasses.fields(config_class)}
        options = {k: v for k, v in arguments.items() if k in fields} | options
        try:
            self._config = config_class(**options)
        except TypeError as error:
            raise ValueError(f"options of {name}: {error}") from error
        self._name, self._split = name, split
        self._data_dir = Path(os.path.expanduser(data_dir)).absolute()
        self._max_pixels, self._upright = max_pixels, upright
        self._copy = prepared.find_copy(
            self._builder_class, self._config, self._data_dir
        )
        if self._copy is None:
            self.categories = self._config.categories(split)
        else:
            metadata = cast(tfds.core.MetadataDict, self._copy.builder.info.metadata)
            self.categories = list(metadata["categories"])

    def open(self) -> Source:
        """Opens the split, and prepares it first where it is not."""
        copy = self._copy or prepared.open_copy(
            self._builder_class, self._config, self._data_dir
        )
        source = Source(
            copy,
            self._config,
            self._config.stored_as(self._split),
            self._max_pixels,
            upright=self._upright,
        )
        if source.tagged and not self._upright:
            where = getattr(self._config, "image_folder", self._name)
            warnings.warn(
                f"{self._split}: images with an orientation tag (Exif), which is not"
                f" applied: {source.tagged} in {where}. If the annotations mean the"
                " images as they are shown, set `upright`",
                OrientationWarning,
                stacklevel=3,
            )
        return source


def make_source(
    name: str,
    split: str,
    data_dir: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    upright: bool = False,
    **options: Any,
) -> Source:
    """Opens a data set, and prepares it first where `data_dir` does not hold it yet.

    Args:
      name: One of `DATA_SETS`.
      split: Split to read.
      data_dir: Where prepared data sets are kept; created if missing.
      max_pixels: Larger images (height * width) are refused before they are decoded.
      upright: Whether photographs are turned as their orientation tag says, because
        the annotations mean them so. COCO's mean the stored pixels.
      **options: Fields of the data set's configuration.

    Raises:
      ValueError: If a name, option, image or annotation is wrong.
      OSError: If a folder or file of the user's data set is missing, or a prepared one
        cannot be written.
    """
    return DataSet(
        name, split, data_dir, max_pixels=max_pixels, upright=upright, **options
    ).open()
