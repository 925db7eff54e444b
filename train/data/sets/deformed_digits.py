"""Deformed digits: a detection data set that is made on the spot.

Real handwritten digits (the set that scikit-learn carries), each under a random
affine and a smooth elastic deformation, at COCO's three size classes, on cluttered
ground, with boxes and instance masks. Labels and sizes are balanced in each split.
A seed fixes every pixel and annotation. Test images use digits that no training
image shows.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import cv2
import numpy as np
import tensorflow_datasets as tfds
from pycocotools import mask as coco_mask

from dcn_jax.categories import BACKGROUND
from train.data import examples
from train.data.label_maps import encode
from train.data.prepared import PreparedConfig
from train.data.progress import preparing
from train.data.sets import digit_scenes

IMAGE_SIDE = 256

# How many small, medium and large digits an image holds. A cycle is balanced; an
# image has room for one large digit only.
_CYCLE = ((1, 1, 1), (1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 0, 1), (0, 1, 1))
_TRAIN_SHARE = 0.75  # of the handwritten digits of each label
_VAL_SHARE = 0.2  # of those of the training images, where there is such a split
_SPLITS = ("train", "test", "val")
_MAX_DEFORMATION = 4.0


@dataclasses.dataclass(kw_only=True)
class DeformedDigitsConfig(PreparedConfig):
    """How many images to make, and from which seed.

    Attributes:
      train_images: Images of the split "train".
      test_images: Images of the split "test", whose digits no other split shows.
      val_images: Images of a split "val" for choices, whose digits no other split
        shows; 0: there is none, and its digits are training's.
      seed: Fixes every pixel and annotation.
      deformation: How far digits are deformed, see `digit_scenes.draw_digit`; at most
        4, beyond which they fall to pieces.
      label_maps: Whether there are label maps too. The ground is then a category, the
        first.
    """

    train_images: int = 2400
    test_images: int = 600
    val_images: int = 0
    seed: int = 0
    deformation: float = 1.0
    label_maps: bool = False

    def __post_init__(self):
        least = {"train_images": 1, "test_images": 1, "val_images": 0, "deformation": 0}
        for field, number in least.items():
            if not getattr(self, field) >= number:
                raise ValueError(
                    f"`{field}` is {getattr(self, field)}; expected >= {number}"
                )
        self.name = f"{self.train_images}_{self.test_images}_seed{self.seed}"
        if self.deformation > _MAX_DEFORMATION:
            raise ValueError(
                f"`deformation` is {self.deformation}; expected <= {_MAX_DEFORMATION}"
            )
        if self.val_images:
            self.name += f"_val{self.val_images}"
        if self.deformation != 1:
            self.name += f"_deformed{float(self.deformation)}".replace(".", "p")
        if self.label_maps:
            self.name += "_label_maps"

    @property
    def images(self) -> dict[str, int]:
        """Split -> number of images."""
        counts = {"train": self.train_images, "test": self.test_images}
        return counts | ({"val": self.val_images} if self.val_images else {})

    def categories(self, split: str) -> list[dict[str, Any]]:
        """The ten digits, and before them the ground where there are label maps."""
        if split not in self.images:
            known = ", ".join(sorted(self.images))
            raise ValueError(f"`split` is {split!r}; deformed_digits has {known}")
        digits = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
        ground = [{"id": 0, "name": BACKGROUND}] if self.label_maps else []
        return ground + digits


class DeformedDigits(tfds.core.GeneratorBasedBuilder):
    """256x256 RGB images with 2 to 4 digits each; categories 1..10 are "0".."9"."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: DeformedDigitsConfig | None = None, **options):
        self._config = config or DeformedDigitsConfig()
        super().__init__(config=self._config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        categories = self._config.categories("train")
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=examples.features(images=True, label_maps=self._config.label_maps),
            metadata=examples.metadata(categories),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {
            split: self._generate_examples(split, count)
            for split, count in self._config.images.items()
        }

    def _generate_examples(
        self, split: str, num_images: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        seed, deformation = self._config.seed, self._config.deformation
        with_label_map = self._config.label_maps
        plan = plan_split(split, num_images, seed, val=self._config.val_images > 0)
        index = examples.start_index(self.info, split, label_maps=with_label_map)
        with preparing(f"{self.name}, {split}", num_images) as bar:
            for number, digits in enumerate(plan):
                example = make_example(split, number, digits, seed, deformation)
                examples.index_image(index, IMAGE_SIDE, IMAGE_SIDE, len(digits))
                if with_label_map:
                    label_map = paint_label_map(json.loads(example["annotations"]))
                    examples.index_label_map(index, example["image_id"], label_map)
                    example["label_map"] = encode(label_map)
                bar.update()
                yield number, example


def paint_label_map(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Paints the masks of an image: 0 is the ground, and k the digit k - 1.

    Returns:
      [256, 256] uint8.
    """
    label_map = np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    for annotation in annotations:
        mask = cast(np.ndarray, coco_mask.decode(annotation["segmentation"]))
        label_map[mask > 0] = annotation["category_id"]
    return label_map


def source_indices(split: str, seed: int, *, val: bool = False) -> list[np.ndarray]:
    """Which handwritten digits a split may show.

    Args:
      split: Its name.
      seed: Of the data set.
      val: Whether there is a split "val".

    Returns:
      For each label 0..9 the shuffled indices into `digit_scenes.digit_fields()`;
      those of the splits are disjoint for the same seed.
    """
    _, labels = digit_scenes.digit_fields()
    rng = np.random.default_rng([seed, 0x5EED])
    pools = []
    for label in range(10):
        pool = rng.permutation(np.flatnonzero(labels == label))
        cut = round(_TRAIN_SHARE * len(pool))
        own = round((1 - _VAL_SHARE) * cut) if val else cut
        parts = {"train": pool[:own], "val": pool[own:cut], "test": pool[cut:]}
        pools.append(parts[split])
    return pools


def plan_split(
    split: str, num_images: int, seed: int, *, val: bool = False
) -> list[list[tuple[str, int, int]]]:
    """Decides what each image shows, so that labels and sizes are balanced.

    Args:
      split: Its name.
      num_images: Of the split.
      seed: Of the data set.
      val: Whether there is a split "val".

    Returns:
      For each image a list of (size class, label, index of the handwritten digit),
      large ones first. Each size class occurs `num_images` times, each label in it
      `num_images / 10` times, rounded up or down.
    """
    rng = np.random.default_rng([seed, 0xB411, _SPLITS.index(split)])
    # A piece of a cycle would not be balanced: the rest takes one of each size.
    whole = num_images - num_images % len(_CYCLE)
    counts = [
        _CYCLE[i % len(_CYCLE)] if i < whole else (1, 1, 1) for i in range(num_images)
    ]
    counts = rng.permutation(np.array(counts))
    pools = [list(pool) for pool in source_indices(split, seed, val=val)]
    used = [0] * 10
    plan: list[list[tuple[str, int, int]]] = [[] for _ in range(num_images)]
    for size, column in (("large", 2), ("medium", 1), ("small", 0)):
        labels = iter(rng.permutation(np.arange(num_images) % 10))
        for digits, count in zip(plan, counts[:, column], strict=True):
            for _ in range(count):
                label = int(next(labels))
                pool = pools[label]
                digits.append((size, label, int(pool[used[label] % len(pool)])))
                used[label] += 1
    return plan


def make_example(
    split: str,
    number: int,
    digits: Sequence[tuple[str, int, int]],
    seed: int,
    deformation: float = 1.0,
) -> dict[str, Any]:
    """Draws image `number` of a split with the planned `digits`.

    Returns:
      The record, as `examples.features()` describes it.
    """
    rng = np.random.default_rng([seed, _SPLITS.index(split), number])
    fields, _ = digit_scenes.digit_fields()
    corners = None
    while corners is None:
        drawn = [
            digit_scenes.draw_digit(rng, fields[source], size, deformation)
            for size, _, source in digits
        ]
        for _ in range(8):
            corners = digit_scenes.place(rng, drawn, IMAGE_SIDE)
            if corners is not None:
                break
    image = digit_scenes.ground(rng, IMAGE_SIDE)
    annotations = []
    for (_, label, _), digit, (top, left) in zip(digits, drawn, corners, strict=True):
        digit_scenes.paint(rng, image, digit, top, left)
        mask = np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.uint8, order="F")
        height, width = digit.mask.shape
        mask[top : top + height, left : left + width] = digit.mask
        rle = coco_mask.encode(mask)
        annotations.append(
            {
                # COCO's evaluation takes an annotation id of 0 for "no match".
                "id": number * 8 + len(annotations) + 1,
                "image_id": number + 1,
                "category_id": label + 1,
                "bbox": [left, top, width, height],
                "area": int(digit.mask.sum()),
                "iscrowd": 0,
                "segmentation": {
                    "size": rle["size"],
                    "counts": cast(bytes, rle["counts"]).decode("ascii"),
                },
            }
        )
    pixels = digit_scenes.add_noise(rng, image)
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return {
        "image": encoded.tobytes(),
        "image_id": number + 1,
        "height": IMAGE_SIDE,
        "width": IMAGE_SIDE,
        "file_name": f"{split}_{number:06d}.jpg",
        "annotations": json.dumps(annotations),
    }
