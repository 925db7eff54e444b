"""Records of images with label maps, for the data sets that have those."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from dcn_jax.quoting import one_line
from train.data import examples, label_maps
from train.data.sets.mistakes import Mistakes, read_all, refusal
from train.data.sets.user_folder import FoundImage, UserFolderConfig

Item = TypeVar("Item")


class LabelledImage(NamedTuple):
    """What a record is made of."""

    image: FoundImage
    label_map: np.ndarray  # [H, W] uint8, see `train.data.label_maps`
    file_name: str


def read_label_file(
    config: UserFolderConfig, path: Path, palette: np.ndarray | None = None
) -> np.ndarray:
    """Reads a PNG label file, with the values that it has; see `label_maps.decode`.

    Raises:
      FileNotFoundError: There is none.
      ValueError: It is another kind of file, broken, or too large.
    """
    # As large as pixels that are not compressed.
    most = max(8 * config.max_pixels, 2**24)
    data = config.read_file(path, "label file", max_bytes=most)
    return label_maps.decode(data, str(path), config.max_pixels, palette=palette)


def read_labelled(
    config: UserFolderConfig,
    image_path: Path,
    label_path: Path,
    read_label_map: Callable[[], np.ndarray],
    *,
    root: Path,
) -> LabelledImage:
    """Reads an image and its label map, and compares their sizes.

    Args:
      config: Of the data set.
      image_path: The image file.
      label_path: The file of the label map, for messages.
      read_label_map: Reads it.
      root: Folder that the image is named relative to.

    Raises:
      Mistakes: What is wrong with either.
    """
    image = label_map = None
    errors: list[ValueError | OSError] = []
    try:
        image = config.look_at(image_path)
    except (ValueError, OSError) as error:
        errors.append(error)
    try:
        label_map = read_label_map()
    except (ValueError, OSError) as error:
        errors.append(error)
    if image is None or label_map is None:
        raise Mistakes(errors)
    if label_map.shape != (image.height, image.width):
        text = (
            f"{one_line(str(label_path), 300)} has (height, width) {label_map.shape};"
            f" its image has {(image.height, image.width)}"
        )
        raise ValueError(text)
    name = image_path.relative_to(root).as_posix()
    return LabelledImage(image, label_map, name)


def label_map_records(
    info: tfds.core.DatasetInfo,
    config: UserFolderConfig,
    items: Sequence[Item],
    read: Callable[[Item], LabelledImage],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number and record of each item, and fills the index of the split.

    Args:
      info: Of the data set.
      config: Its configuration.
      items: What is read.
      read: Reads one.

    Raises:
      ValueError: All that is wrong with the files.
      FileNotFoundError: All that is wrong is that they are missing.
    """
    split = config.stored_as(config.split)
    index = examples.start_index(info, split, label_maps=True)
    tagged = 0
    for number, labelled in read_all(
        items,
        read,
        lambda errors: refusal(config.root, errors, "mistakes"),
        what=f"{info.name} of {config.folder}, {config.split}",
    ):
        image, image_id = labelled.image, number + 1
        tagged += image.tagged
        examples.index_image(index, image.height, image.width, 0)
        examples.index_label_map(index, image_id, labelled.label_map)
        yield (
            number,
            {
                "image_id": image_id,
                "height": image.height,
                "width": image.width,
                "file_name": labelled.file_name,
                "annotations": "[]",
                "label_map": label_maps.encode(labelled.label_map),
            },
        )
    examples.note(info, split, left_out={}, bad_masks={}, without_mask=0, tagged=tagged)
