"""A trained network, and what it sees of nodes of one image.

The network is given the image on its canvas. The functions of `dcn_jax.explain` are
given the image alone, without the padding, so that shares of it are shares of the image
and no pixel of the padding is looked at.

Shape letters: H W image as the network is given it, K nodes, P Q map.
"""

import copy
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from dcn_jax.explain import (
    BinLocations,
    OffsetField,
    SaliencyRegion,
    SamplingLocations,
    bin_locations,
    convolutions,
    effective_receptive_field,
    first_in_pixels,
    map_stride,
    offset_fields,
    saliency_region,
    sampling_locations,
)
from train import conventions, sharding
from train.config_dict import ConfigDict
from train.evaluate import at_side, load_variables
from train.evaluator import make_predict
from train.explain.nodes import Node, Position, RoI
from train.explain.viewer import Detected, write_viewer
from train.preprocessing import preprocessing_of
from train.task import Task

# Of the saliency regions' error.
ERROR_BOUND = 0.1
# So many of the last convolutions are followed, as in the papers.
_LAYERS = 3


class Explanation(NamedTuple):
    """What a network sees of one node, in pixels of the image as it was given.

    Positions of `where`, and gradients by them, are in pixels of the image too, and
    what is outside of the image is not inside.
    """

    node: Position | RoI
    place: tuple[int, int] | None  # (y, x) of the map; a RoI has none
    centre: tuple[int, int]  # (y, x) of the pixel there
    where: SamplingLocations | BinLocations  # of this node, without the axis K
    field: np.ndarray  # [H, W], strength of the receptive field
    saliency: SaliencyRegion


class _Looked(NamedTuple):
    """Where nodes of one kind are looked at."""

    call: Callable[[Any, jax.Array], jax.Array]
    places: Sequence[tuple[int, ...]]  # in what `call` returns
    boxes: np.ndarray  # [K, 4] of the image as the network is given it


class ExplainedNetwork:
    """The newest checkpoint of a run, on one image.

    Attributes:
      name: Of its configuration.
      step: Of the checkpoint.
      image: [H, W, 3] uint8, as the network is given it.
      geometry: From the given image to the canvas.
      pixels: [P, Q, 2], (y, x) of each position of the map in the given image.
      layers: The convolutions that are followed, from the node down.
      sees_rois: Whether RoIs can be nodes.

    Args:
      config: The configuration of the run.
      workdir: Its folder.
      task: Its task.
      image: [H0, W0, 3] uint8 RGB.

    Raises:
      OSError: There is no checkpoint.
      ValueError: The configuration or the checkpoint is at fault.
    """

    def __init__(self, config: ConfigDict, workdir: Path, task: Task, image: Any):
        config = conventions.kept(config, workdir)
        self.name, self._task, self._config = config.name, task, config
        self._mesh = sharding.make_mesh(devices=jax.devices()[:1])
        loaded = load_variables(config, task, workdir, self._mesh)
        self.step, self._skeleton, self._variables, description = loaded
        self._categories = description["categories"]
        self._passes = task.passes(self._skeleton.abstract)
        self.sees_rois = self._passes.rois is not None
        self._given = image
        self._fit(config.data)
        self.layers = self._last_layers()

    def at_side(self, side: int) -> "ExplainedNetwork":
        """The same network on the same image, whose shorter side is another one."""
        other = copy.copy(self)
        other._fit(at_side(self._config, side).data)
        return other

    def _fit(self, data: ConfigDict) -> None:
        """Resizes the image as a section `data` says."""
        self._canvas, self.geometry = preprocessing_of(data)(self._given)
        height, width = self.geometry.size
        self.image = self._canvas[:height, :width]
        self._floats = jnp.asarray(self.image, jnp.float32)
        self._sizes = jnp.asarray([self.geometry.size], jnp.int32)
        shape = jax.eval_shape(
            lambda v, x: self._map(self._skeleton.model(v), x[None]),
            *(self._variables, self._floats),
        ).shape
        self.stride = map_stride(self.geometry.canvas, shape[1:3])
        rows, columns = (-(-side // self.stride) for side in self.geometry.size)
        places = np.moveaxis(np.mgrid[:rows, :columns], 0, -1)
        self.pixels = self.given(places * self.stride)

    def given(self, position: np.ndarray) -> np.ndarray:
        """Positions (y, x) of the image in pixels of the one that was given."""
        return (position + 0.5) / np.asarray(self.geometry.scale) - 0.5

    def boxes(self, score: float) -> np.ndarray:
        """Boxes [D, 4] that it finds in the given image, as `--score` says."""
        return self._boxes_of(self._found(score))

    def write_viewer(self, path: Path, score: float) -> None:
        """Writes the page on which one points at a place of the image.

        Args:
          path: The file.
          score: Lowest score of the objects that it shows.

        Raises:
          OSError: It cannot be written.
        """
        model = self._skeleton.model(self._variables)
        with tqdm(desc=f"viewer, {self.name}", unit="node", disable=None) as bar:
            write_viewer(
                # The map is that of the canvas.
                *(path, model, self._map, self._canvas.astype(np.float32)),
                title=f"{self.name}, step {self.step}",
                detected=self._detected(model, score),
                size=self.geometry.size,
                layers=self.layers,
                report=functools.partial(_count, bar),
            )

    def _detected(self, model: Any, score: float) -> Detected:
        """Objects in pixels of the image, with their bins where RoIs are explained."""
        records, bins = self._found(score), None
        y, x = self.geometry.scale
        boxes = np.asarray(self._boxes_of(records) * (x, y, x, y), np.float32)
        if self._passes.rois is not None and records:
            call = functools.partial(self._rois, rois=jnp.asarray(boxes[None]))
            nodes = np.arange(len(boxes), dtype=np.int32)[:, None]
            find = nnx.jit(lambda m, image: bin_locations(m, call, image, nodes))
            bins = jax.device_get(find(model, self._floats))
        return Detected(
            boxes,
            np.asarray([record["score"] for record in records], np.float32),
            [record["label"] for record in records],
            bins,
        )

    def _boxes_of(self, records: Sequence[dict[str, Any]]) -> np.ndarray:
        boxes = np.array([record["bbox"] for record in records]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        height, width = self.geometry.original
        return boxes.clip(0, [width, height, width, height])

    def _found(self, score: float) -> list[dict[str, Any]]:
        """Records of the objects in the given image."""
        predict = make_predict(self._skeleton, self._mesh)
        images, sizes = self._canvas[None], np.asarray(self._sizes)
        found = jax.device_get(predict(self._variables, images, sizes))
        records = self._task.records(
            jax.tree.map(operator.itemgetter(0), found),
            *(self.geometry, self._categories, score),
        )
        return [record for record in records if "bbox" in record]

    def offsets(self) -> dict[str, OffsetField]:
        """Fields of its deformable layers on the way to the map.

        In pixels of the image, without the axis of the batch.
        """

        def find(variables, image):
            model = self._skeleton.model(variables)
            return offset_fields(model, lambda model: self._map(model, image[None]))

        found = jax.device_get(jax.jit(find)(self._variables, self._floats))
        sizes = self.geometry.canvas, self.geometry.size
        return {name: first_in_pixels(field, *sizes) for name, field in found.items()}

    def explain(self, nodes: Sequence[Node], max_passes: int) -> list[Explanation]:
        """Explains nodes.

        Args:
          nodes: On the given image, all of one kind.
          max_passes: As of `saliency_region`.

        Raises:
          ValueError: They are RoIs, which this network does not explain, or one says
            nothing of this image.
        """
        call, places, boxes = self._looked(nodes)
        numbers = np.asarray(places, np.int32)
        positions = numbers.shape[1] == 2

        def see(variables, image):
            model = self._skeleton.model(variables)
            field = effective_receptive_field(model, call, image, numbers)
            if positions:
                where = sampling_locations(
                    *(model, call, image, numbers), layers=self.layers, gradient=True
                )
            else:
                where = bin_locations(model, call, image, numbers, gradient=True)
            return where, field.strength

        where, field = jax.device_get(jax.jit(see)(self._variables, self._floats))
        regions = self._saliency(nodes, call, places, boxes, max_passes)
        middles = np.floor((boxes[:, 1::-1] + boxes[:, :1:-1]) / 2).astype(int)
        return [
            Explanation(
                node=node,
                place=(place[0], place[1]) if positions else None,
                centre=tuple(middle.tolist()),
                where=self._of_node(where, k),
                field=field[k],
                saliency=region,
            )
            for k, (node, place, middle, region) in enumerate(
                zip(nodes, places, middles, regions, strict=True)
            )
        ]

    def receptive_fields(self, nodes: Sequence[Node]) -> np.ndarray:
        """Strengths [K, H, W]; arguments and errors as of `explain`."""
        call, places, _ = self._looked(nodes)
        numbers = np.asarray(places, np.int32)

        def see(variables, image):
            model = self._skeleton.model(variables)
            return effective_receptive_field(model, call, image, numbers).strength

        return jax.device_get(jax.jit(see)(self._variables, self._floats))

    def _looked(self, nodes: Sequence[Node]) -> _Looked:
        positions = [node for node in nodes if isinstance(node, Position)]
        if positions:
            places = [self._place(node) for node in positions]
            boxes = [
                [self.stride * i + end for end in (-0.5, 1.5) for i in place[::-1]]
                for place in places
            ]
            return _Looked(self._map, places, np.asarray(boxes))
        if self._passes.rois is None:
            raise ValueError(
                f"`--node` is a RoI, and {self.name} has none to explain; expected "
                "positions, or a detector with aligned or deformable RoI pooling and "
                "fully connected layers after it."
            )
        y, x = self.geometry.scale
        given = [node.box for node in nodes if isinstance(node, RoI)]
        boxes = np.asarray(given) * (x, y, x, y)
        call = functools.partial(self._rois, rois=jnp.asarray(boxes[None], jnp.float32))
        return _Looked(call, [(b,) for b in range(len(given))], boxes)

    def _saliency(
        self, nodes, call, places, boxes, max_passes
    ) -> Iterator[SaliencyRegion]:
        """Searches one region after the other, with a bar of progress for each."""
        model = self._skeleton.model(self._variables)
        for node, place, box in zip(nodes, places, boxes, strict=True):
            title = f"saliency of {node.label}, {self.name}"
            # Not shown where nobody looks.
            with tqdm(total=max_passes, desc=title, unit="pass", disable=None) as bar:
                yield saliency_region(
                    *(model, call, self._floats, place),
                    error=ERROR_BOUND,
                    box=box.tolist(),
                    fill=self._passes.mean_colour,
                    max_passes=max_passes,
                    report=functools.partial(_show, bar),
                )

    def _on_canvas(self, images: jax.Array) -> jax.Array:
        (height, width), (top, left) = self.geometry.canvas, images.shape[1:3]
        return jnp.pad(images, ((0, 0), (0, height - top), (0, width - left), (0, 0)))

    def _map(self, model: Any, images: jax.Array) -> jax.Array:
        return self._passes.map(model, self._on_canvas(images), self._sizes)

    def _rois(self, model: Any, images: jax.Array, *, rois: jax.Array) -> jax.Array:
        assert self._passes.rois is not None
        return self._passes.rois(model, self._on_canvas(images), self._sizes, rois)

    def _last_layers(self) -> tuple[str, ...]:
        found = convolutions(self._skeleton.abstract, self._map, self._floats)
        if not found:
            raise ValueError(
                f"{self.name} has no convolution larger than 1x1 on the way to its map;"
                " expected one, whose sampling locations could be shown."
            )
        return tuple(layer.name for layer in found[::-1][:_LAYERS])

    def _place(self, node: Position) -> tuple[int, int]:
        """The position of the map that is nearest to a pixel of the given image."""
        away = np.abs(self.pixels - (node.y, node.x)).sum(-1)
        y, x = np.unravel_index(int(away.argmin()), away.shape)
        return int(y), int(x)

    def _of_node(self, where: Any, k: int) -> Any:
        """One node's part; locations in pixels of the image, in its padding outside."""
        if isinstance(where, BinLocations):
            return jax.tree.map(lambda field: field[k], where)
        stride = map_stride(self.geometry.canvas, where.map_size.tolist())
        position = where.position[k] * stride
        last = np.asarray(self.geometry.size) - 1
        on_image = ((position >= 0) & (position <= last)).all(-1)
        return where._replace(
            position=position,
            inside=where.inside[k] & on_image,
            weight=where.weight[k],
            gradient=where.gradient[k] / stride,
        )


def _count(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _show(bar: Any, passes: int, area: float) -> None:
    bar.update(passes - bar.n)
    bar.set_postfix_str(f"{100 * area:.0f} % of the image")
