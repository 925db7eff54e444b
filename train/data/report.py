"""One line about a split: what of it is used, and what is not and why."""

from collections.abc import Mapping

from train.data.source import Source


def training_line(
    source: Source, split: str, *, max_boxes: int, skip_empty: bool, masks: bool
) -> str:
    """What training uses of a split.

    Args:
      source: The split.
      split: Its name.
      max_boxes: As the field of the section `data`.
      skip_empty: Likewise.
      masks: Whether masks are learned.
    """
    total = len(source)
    used = int((source.num_boxes > 0).sum()) if skip_empty else total
    parts = [f"{split}: {used} of {total} images"]
    if used < total:
        parts[0] += f" ({total - used} have no usable object: `skip_empty`)"
    elif not skip_empty and (empty := int((source.num_boxes == 0).sum())):
        parts[0] += f" ({empty} of them without objects)"
    over = source.num_boxes - max_boxes
    over = over[over > 0]
    cut = int(over.sum())
    objects = _objects(source)
    parts.append(
        f"{int(source.num_boxes.sum()) - cut} of {objects} objects are used in training"
    )
    if cut:
        parts.append(
            f"objects over `max_boxes` ({max_boxes}), which count as background: {cut}"
            f" (in {len(over)} images)"
        )
    if masks:
        parts.append(_masks(source, "which train boxes alone"))
    return "; ".join(parts + _rest(source))


def label_map_line(source: Source, split: str, *, skip_empty: bool) -> str:
    """What is used of a split with label maps.

    Args:
      source: The split.
      split: Its name.
      skip_empty: Whether images without a label are left out.
    """
    total, empty = len(source), int((source.labelled == 0).sum())
    pixels = int(source.sizes.prod(1).sum())
    labelled = int(source.labelled.sum())
    parts = [f"{split}: {total - empty if skip_empty else total} of {total} images"]
    if empty:
        left_out = ": `skip_empty`" if skip_empty else ""
        parts[0] += f" ({empty} without a label{left_out})"
    parts.append(f"{labelled / pixels:.1%} of the pixels have a label")
    return "; ".join(parts + _rest(source))


def evaluation_line(source: Source, split: str, *, masks: bool) -> str:
    """What an evaluation uses of a split; `masks` as in `training_line`."""
    parts = [f"{split}: {len(source)} images, {_objects(source)} objects in evaluation"]
    if masks:
        parts.append(_masks(source, "which mask AP leaves out"))
    return "; ".join(parts + _rest(source))


def _masks(source: Source, use: str) -> str:
    """How many of the usable objects have a mask, and what becomes of the others."""
    usable = int(source.num_boxes.sum())
    text = f"{usable - source.without_mask} of {usable} usable objects have a mask"
    if source.without_mask:
        text += f" (the others, {use}: {source.without_mask})"
    return text


def _objects(source: Source) -> int:
    return int(source.num_boxes.sum()) + sum(source.left_out.values())


def _rest(source: Source) -> list[str]:
    parts = []
    if source.left_out:
        parts.append(f"not trained on: {_counts(source.left_out)}")
    if source.bad_masks:
        parts.append(f"masks that are not kept: {_counts(source.bad_masks)}")
    if source.tagged:
        what = "is" if source.upright else "is not"
        parts.append(
            f"images whose orientation tag {what} applied (`upright`): {source.tagged}"
        )
    return parts


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} ({count})" for what, count in counts.items())
