"""Batches for training and evaluation.

N images of a global batch, n of them in this process, H W canvas.

Which images make up batch i, at which size, mirrored or not and cropped where, is a
pure function of the seed and of i. So an iterator's state is one number, every process
plans alike and takes its own rows, and a run that is resumed reads the same batches.
What is made of an example, given how its image lies on the canvas, is the task's
affair.
"""

import sys
import threading
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import cv2
import grain
import jax
import numpy as np

from dcn_jax.images.fit import fit_canvases, place, resize, resized_sizes
from dcn_jax.images.geometry import Geometry
from train.data import transforms
from train.data.batch_iterator import BatchIterator
from train.data.source import Example, Source

# Several images are worked on at once already; OpenCV's own threads would only compete
# with that and with XLA.
cv2.setNumThreads(0)

Canvases = Sequence[tuple[int, int]]
# From an example and its geometry to its rows in the arrays of a batch.
Targets = Callable[[Example, Geometry], dict[str, np.ndarray]]


class Plan(NamedTuple):
    """What the batches of an epoch hold; B batches of N images."""

    index: np.ndarray  # [B, N] int64, indices into the source
    canvas: np.ndarray  # [B] int64, indices into the canvases
    size: np.ndarray  # [B, N, 2] int64, (height, width) to resize to
    flip: np.ndarray  # [B, N] bool
    corner: np.ndarray  # [B, N, 2] int64, (top, left) of what is shown
    filler: np.ndarray  # [B, N] bool, repeated to complete a batch


def plan_batches(
    index: np.ndarray,
    canvas: np.ndarray,
    size: np.ndarray,
    flip: np.ndarray,
    batch_size: int,
    corner: np.ndarray | None = None,
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
      corner: [n, 2] where what is shown of each begins; None: at (0, 0).
    """
    if corner is None:
        corner = np.zeros_like(size)
    rows, fillers = [np.zeros((0, batch_size), np.int64)], []
    for number in np.unique(canvas):
        members = np.flatnonzero(canvas == number)
        count = -(-len(members) // batch_size) * batch_size
        rows.append(np.resize(members, count).reshape(-1, batch_size))
        fillers.append((np.arange(count) >= len(members)).reshape(-1, batch_size))
    row = np.concatenate(rows)
    filler = np.concatenate([np.zeros((0, batch_size), bool), *fillers])
    return Plan(
        index[row], canvas[row[:, 0]], size[row], flip[row], corner[row], filler
    )


class _TrainBatches(grain.sources.RandomAccessDataSource):
    """Batch i of a run, for one process."""

    def __init__(
        self,
        source,
        targets,
        *,
        index,
        batch_size,
        rows,
        canvases,
        short_sides,
        max_side,
        crop,
        flip,
        seed,
        num_epochs,
    ):
        self._source = source
        self._targets = targets
        self._index = index
        self._batch_size = batch_size
        self._rows = rows
        self._canvases = [crop] if crop else canvases
        self._short_sides = np.asarray(short_sides)
        self._max_side = max_side
        self._crop = crop
        self._flip = flip
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
        """Plans an epoch: order, sizes, mirroring, crops. The lock must be held."""
        rng = np.random.default_rng([self._seed, epoch])
        index = rng.permutation(self._index)
        short_sides = rng.choice(self._short_sides, len(index))
        flip = (rng.random(len(index)) < 0.5) & self._flip
        size = resized_sizes(self._source.sizes[index], short_sides, self._max_side)
        if self._crop:
            canvas = np.zeros(len(index), np.int64)
            corner = rng.integers(np.maximum(size - self._crop, 0) + 1)
        else:
            canvas, size = fit_canvases(size, self._canvases)
            corner = None
        plan = plan_batches(index, canvas, size, flip, self._batch_size, corner)
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
        examples = [self._source[i] for i in plan.index[batch, self._rows]]
        geometries = [
            Geometry.of(example.image.shape[:2], size, canvas, flip=flip, corner=corner)
            for example, size, flip, corner in zip(
                examples,
                plan.size[batch, self._rows],
                plan.flip[batch, self._rows],
                plan.corner[batch, self._rows],
                strict=True,
            )
        ]
        arrays = _images(examples, geometries)
        return arrays | _truth(self._targets, examples, geometries, arrays)


def _images(
    examples: Sequence[Example], geometries: Sequence[Geometry]
) -> dict[str, np.ndarray]:
    images = map(_placed, (example.image for example in examples), geometries)
    sizes = [geometry.shown for geometry in geometries]
    return {"images": np.stack(list(images)), "sizes": np.array(sizes, np.int32)}


def _truth(
    targets: Targets,
    examples: Sequence[Example],
    geometries: Sequence[Geometry],
    arrays: Collection[str],
) -> dict[str, np.ndarray]:
    """Stacks what `targets` makes; `arrays` names what the loader makes."""
    rows = list(map(targets, examples, geometries))
    if taken := rows[0].keys() & set(arrays):
        raise ValueError(f"`targets` has {sorted(taken)}, which the loader makes")
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _placed(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Puts an image onto its canvas."""
    image = resize(image, geometry.size)
    if geometry.flip:
        image = transforms.flip_image(image)
    return place(image, geometry.canvas, corner=geometry.corner)


class _EvalBatches(grain.sources.RandomAccessDataSource):
    """Batch i of an evaluation, for one process."""

    def __init__(
        self, source, targets, *, batch_size, rows, canvases, short_side, max_side
    ):
        self._source = source
        self._targets = targets
        self._rows = rows
        self._canvases = canvases
        size = resized_sizes(source.sizes, short_side, max_side)
        canvas, size = fit_canvases(size, canvases)
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
        original = self._source.sizes[index]
        geometries = [
            Geometry.of(old, new, canvas)
            for old, new in zip(original, size, strict=True)
        ]
        image_id = np.array([example.image_id for example in examples], np.int64)
        arrays = _images(examples, geometries) | {
            "image_id": np.where(self._plan.filler[number, self._rows], -1, image_id),
            "index": index,
            "original_sizes": original.astype(np.int32),
        }
        if self._targets is None:
            return arrays
        return arrays | _truth(self._targets, examples, geometries, arrays)


def train_loader(
    source: Source,
    targets: Targets,
    *,
    index: np.ndarray,
    batch_size: int,
    canvases: Canvases,
    short_sides: Sequence[int],
    max_side: int,
    crop: tuple[int, int] | None = None,
    flip: bool,
    seed: int,
    num_epochs: int | None = None,
    workers: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchIterator:
    """Iterates over training batches, in an order that the seed fixes.

    In each epoch the images are shuffled, resized, and grouped so that a batch has one
    canvas; the last batch of a canvas is completed with images of the same canvas.

    Args:
      source: The images.
      targets: Makes the rows of an example; those of a name have one shape.
      index: [n], which of the images are used.
      batch_size: Images of a batch over all processes.
      canvases: (height, width) of the arrays; an image goes to the smallest that holds
        it, or is shrunk to the one that shrinks it least.
      short_sides: The short side of each image is drawn from these.
      max_side: Cap of the long side.
      crop: (height, width) of the window, at a random place of each resized image, that
        is shown in its place, and of all arrays then; None: whole images.
      flip: Whether half of the images are mirrored left to right.
      seed: Fixes order, sizes, mirroring and crops.
      num_epochs: Passes over the images; None is without end.
      workers: Processes that read; 0: threads of this one. Batches are the same.
      process_index: Which rows to read; by default this process's of `jax`.
      process_count: Number of processes that share a batch; by default `jax`'s.

    Returns:
      An iterator over dicts of `images` [n, H, W, 3] uint8, `sizes` [n, 2] int32
      (height, width of the valid part), and what `targets` names, [n, ...].

    Raises:
      ValueError: If `index` is empty, or an argument is wrong.
    """
    rows = _rows(batch_size, process_index, process_count)
    if not short_sides or min(short_sides) < 1:
        raise ValueError(f"`short_sides` is {short_sides}; expected pixels")
    if not len(index):
        raise ValueError("`index` is empty; expected images to train on")
    batches = _TrainBatches(
        source,
        targets,
        index=index,
        batch_size=batch_size,
        rows=rows,
        canvases=[tuple(canvas) for canvas in canvases],
        short_sides=short_sides,
        max_side=max_side,
        crop=crop,
        flip=flip,
        seed=seed,
        num_epochs=num_epochs,
    )
    return BatchIterator(batches, workers)


def eval_loader(
    source: Source,
    targets: Targets | None = None,
    *,
    batch_size: int,
    canvases: Canvases,
    short_side: int,
    max_side: int,
    workers: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchIterator:
    """Iterates once over all images.

    Args:
      source: The images.
      targets: As in `train_loader`; None: without ground truth.
      batch_size: Images of a batch over all processes.
      canvases: As in `train_loader`.
      short_side: Short side that images are resized to.
      max_side: Cap of the long side.
      workers: As in `train_loader`.
      process_index: As in `train_loader`.
      process_count: As in `train_loader`.

    Returns:
      An iterator over dicts of `images` [n, H, W, 3] uint8, `sizes` [n, 2] int32,
      `image_id` [n] int64, -1 in rows that only complete a batch, `index` [n] int64,
      places in the source, `original_sizes` [n, 2] int32, before resizing, and what
      `targets` names, [n, ...]. Every process sees the same number of batches.
    """
    batches = _EvalBatches(
        source,
        targets,
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
