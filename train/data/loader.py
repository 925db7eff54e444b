"""Batches for training and evaluation.

N images of a global batch, n of them in this process, H W canvas, M boxes.

Which images make up batch i, at which size and mirrored or not, is a pure function of
the seed and of i. So an iterator's state is one number, every process plans alike and
takes its own rows, and a run that is resumed reads the same batches.
"""

import sys
import threading
from collections.abc import Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np

from train.data import transforms
from train.data.batch_iterator import BatchIterator
from train.data.source import Source

Canvases = Sequence[tuple[int, int]]


class Plan(NamedTuple):
    """What the batches of an epoch hold; B batches of N images."""

    index: np.ndarray  # [B, N] int64, indices into the source
    canvas: np.ndarray  # [B] int64, indices into the canvases
    size: np.ndarray  # [B, N, 2] int64, (height, width) to resize to
    flip: np.ndarray  # [B, N] bool
    filler: np.ndarray  # [B, N] bool, repeated to complete a batch


def plan_batches(
    index: np.ndarray,
    canvas: np.ndarray,
    size: np.ndarray,
    flip: np.ndarray,
    batch_size: int,
) -> Plan:
    """Groups images, in the given order, into batches of one canvas each.

    The last batch of a canvas is completed with images from the canvas's start, so no
    image is left out and every batch is whole.

    Args:
      index: [n] images.
      canvas: [n] canvas of each.
      size: [n, 2] size of each.
      flip: [n] whether each is mirrored.
      batch_size: Images in a batch.
    """
    rows, fillers = [np.zeros((0, batch_size), np.int64)], []
    for number in np.unique(canvas):
        members = np.flatnonzero(canvas == number)
        count = -(-len(members) // batch_size) * batch_size
        rows.append(np.resize(members, count).reshape(-1, batch_size))
        fillers.append((np.arange(count) >= len(members)).reshape(-1, batch_size))
    row = np.concatenate(rows)
    filler = np.concatenate([np.zeros((0, batch_size), bool), *fillers])
    return Plan(index[row], canvas[row[:, 0]], size[row], flip[row], filler)


class _TrainBatches(grain.sources.RandomAccessDataSource):
    """Batch i of a run, for one process."""

    def __init__(
        self,
        source,
        indices,
        *,
        batch_size,
        rows,
        canvases,
        short_sides,
        max_side,
        flip,
        max_boxes,
        seed,
        num_epochs,
    ):
        self._source = source
        self._indices = indices
        self._batch_size = batch_size
        self._rows = rows
        self._canvases = canvases
        self._short_sides = np.asarray(short_sides)
        self._max_side = max_side
        self._flip = flip
        self._max_boxes = max_boxes
        self._seed = seed
        self._num_epochs = num_epochs
        self._ends: list[int] = []  # batches up to the end of each epoch planned so far
        self._plans: dict[int, Plan] = {}
        self._lock = threading.Lock()

    def __getstate__(self):
        # Worker processes get a copy; a lock cannot travel.
        return {**self.__dict__, "_lock": None, "_plans": {}}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        if self._num_epochs is None:
            return sys.maxsize
        with self._lock:
            for epoch in range(len(self._ends), self._num_epochs):
                self._plan(epoch)
        return self._ends[self._num_epochs - 1]

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        with self._lock:
            epoch = 0
            while epoch >= len(self._ends) or self._ends[epoch] <= number:
                if epoch >= len(self._ends):
                    self._plan(epoch)
                else:
                    epoch += 1
            plan = self._plans.get(epoch) or self._plan(epoch)
        batch = number - (self._ends[epoch - 1] if epoch else 0)
        return self._load(plan, batch)

    def _plan(self, epoch: int) -> Plan:
        """Plans an epoch: order, sizes, mirroring. The lock must be held."""
        rng = np.random.default_rng([self._seed, epoch])
        index = rng.permutation(self._indices)
        short_sides = rng.choice(self._short_sides, len(index))
        flip = (rng.random(len(index)) < 0.5) & self._flip
        size = transforms.resized_sizes(
            self._source.sizes[index], short_sides, self._max_side
        )
        canvas, size = transforms.fit_canvases(size, self._canvases)
        plan = plan_batches(index, canvas, size, flip, self._batch_size)
        order = rng.permutation(len(plan.index))
        plan = Plan(*(field[order] for field in plan))
        if epoch == len(self._ends):
            self._ends.append((self._ends or [0])[-1] + len(order))
        # Prefetching straddles the border of two epochs.
        self._plans = {e: p for e, p in self._plans.items() if abs(e - epoch) <= 1}
        self._plans[epoch] = plan
        return plan

    def _load(self, plan: Plan, batch: int) -> dict[str, np.ndarray]:
        canvas = self._canvases[plan.canvas[batch]]
        count = self._rows.stop - self._rows.start
        arrays = {
            "images": np.zeros((count, *canvas, 3), np.uint8),
            "sizes": plan.size[batch, self._rows].astype(np.int32),
            "boxes": np.zeros((count, self._max_boxes, 4), np.float32),
            "labels": np.zeros((count, self._max_boxes), np.int32),
            "valid": np.zeros((count, self._max_boxes), bool),
        }
        for row in range(count):
            column = self._rows.start + row
            example = self._source[plan.index[batch, column]]
            height, width = plan.size[batch, column]
            scale = np.array([height, width]) / example.image.shape[:2]
            image = transforms.resize(example.image, (height, width))
            boxes = transforms.scale_boxes(example.boxes, scale)
            boxes = transforms.clip_boxes(boxes, (height, width))
            if plan.flip[batch, column]:
                image = transforms.flip_image(image)
                boxes = transforms.flip_boxes(boxes, width)
            arrays["images"][row, :height, :width] = image
            # A box may be so small that it vanishes where it is scaled and moved.
            seen = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
            seen = seen[: self._max_boxes]
            arrays["boxes"][row, : len(seen)] = boxes[seen]
            arrays["labels"][row, : len(seen)] = example.labels[seen]
            arrays["valid"][row, : len(seen)] = True
        return arrays


class _EvalBatches(grain.sources.RandomAccessDataSource):
    """Batch i of an evaluation, for one process."""

    def __init__(self, source, *, batch_size, rows, canvases, short_side, max_side):
        self._source = source
        self._rows = rows
        self._canvases = canvases
        size = transforms.resized_sizes(source.sizes, short_side, max_side)
        canvas, size = transforms.fit_canvases(size, canvases)
        index = np.arange(len(source))
        flip = np.zeros(len(source), bool)
        self._plan = plan_batches(index, canvas, size, flip, batch_size)

    def __len__(self) -> int:
        return len(self._plan.index)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        index = self._plan.index[number, self._rows]
        size = self._plan.size[number, self._rows]
        canvas = self._canvases[self._plan.canvas[number]]
        examples = [self._source[i] for i in index]
        images = [
            transforms.place(transforms.resize(example.image, shape), canvas)
            for example, shape in zip(examples, size, strict=True)
        ]
        image_id = np.array([example.image_id for example in examples], np.int64)
        return {
            "images": np.stack(images),
            "sizes": size.astype(np.int32),
            "image_id": np.where(self._plan.filler[number, self._rows], -1, image_id),
            "scale": (size / self._source.sizes[index]).astype(np.float32),
        }


def train_loader(
    source: Source,
    *,
    batch_size: int,
    canvases: Canvases,
    short_sides: Sequence[int],
    max_side: int,
    flip: bool,
    max_boxes: int,
    seed: int,
    num_epochs: int | None = None,
    skip_empty: bool = True,
    workers: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchIterator:
    """Iterates over training batches, in an order that the seed fixes.

    In each epoch the images are shuffled, resized, and grouped so that a batch has one
    canvas; the last batch of a canvas is completed with images of the same canvas.

    Args:
      source: The images.
      batch_size: Images of a batch over all processes.
      canvases: (height, width) of the arrays; an image goes to the smallest that holds
        it, or is shrunk to the one that shrinks it least.
      short_sides: The short side of each image is drawn from these.
      max_side: Cap of the long side.
      flip: Whether half of the images are mirrored left to right.
      max_boxes: Boxes are padded to this many; of an image with more, the first stay.
      seed: Fixes order, sizes and mirroring.
      num_epochs: Passes over the images; None is without end.
      skip_empty: Leave out images without a usable box, as Detectron does.
      workers: Processes that read; 0: threads of this one. Batches are the same.
      process_index: Which rows to read; by default this process's of `jax`.
      process_count: Number of processes that share a batch; by default `jax`'s.

    Returns:
      An iterator over dicts of `images` [n, H, W, 3] uint8, `sizes` [n, 2] int32
      (height, width of the valid part), `boxes` [n, M, 4] float32 in canvas pixels,
      `labels` [n, M] int32 and `valid` [n, M] bool.

    Raises:
      ValueError: If no image is left, or an argument is wrong.
    """
    rows = _rows(batch_size, process_index, process_count)
    if not short_sides or min(short_sides) < 1:
        raise ValueError(f"`short_sides` is {short_sides}; expected pixels")
    indices = np.arange(len(source))
    if skip_empty:
        indices = indices[source.num_boxes > 0]
    if not len(indices):
        raise ValueError("`source` has no image with a usable box to train on")
    batches = _TrainBatches(
        source,
        indices,
        batch_size=batch_size,
        rows=rows,
        canvases=[tuple(canvas) for canvas in canvases],
        short_sides=short_sides,
        max_side=max_side,
        flip=flip,
        max_boxes=max_boxes,
        seed=seed,
        num_epochs=num_epochs,
    )
    return BatchIterator(batches, workers)


def eval_loader(
    source: Source,
    *,
    batch_size: int,
    canvases: Canvases,
    short_side: int,
    max_side: int,
    workers: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchIterator:
    """Iterates once over all images, with or without ground truth.

    Args:
      source: The images.
      batch_size: Images of a batch over all processes.
      canvases: As in `train_loader`.
      short_side: Short side that images are resized to.
      max_side: Cap of the long side.
      workers: As in `train_loader`.
      process_index: As in `train_loader`.
      process_count: As in `train_loader`.

    Returns:
      An iterator over dicts of `images` [n, H, W, 3] uint8, `sizes` [n, 2] int32,
      `image_id` [n] int64, -1 in rows that only complete a batch, and `scale` [n, 2]
      float32, (y, x) of resized / original size. Every process sees the same number of
      batches.
    """
    batches = _EvalBatches(
        source,
        batch_size=batch_size,
        rows=_rows(batch_size, process_index, process_count),
        canvases=[tuple(canvas) for canvas in canvases],
        short_side=short_side,
        max_side=max_side,
    )
    return BatchIterator(batches, workers)


def _rows(
    batch_size: int, process_index: int | None, process_count: int | None
) -> slice:
    """The rows of a global batch that a process reads."""
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if batch_size < 1 or batch_size % count:
        raise ValueError(
            f"`batch_size` is {batch_size}; expected a positive multiple of the"
            f" {count} processes"
        )
    share = batch_size // count
    return slice(index * share, (index + 1) * share)
