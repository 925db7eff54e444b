"""Programs of single operators, at sizes that the paper's detectors have.

Shape letters: N batch, B RoIs or boxes of an image.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import xla_ops

# Conv4 of an image 800x1344.
_MAP = (50, 84)
_CHANNELS = 256
_ROIS = 512
_BINS = (7, 7)
_SCALE = 1 / 16
_IMAGES = 2  # of a device

_CONVOLUTION = "dcn_jax.deform_conv2d."
_BACKWARD = ("list", "gather", "visit")


class Operator(NamedTuple):
    """An operator with the shapes of its arguments.

    Attributes:
      name: In tables.
      function: Of the moving arguments, then the fixed ones.
      moving: Shapes without N of arguments that have a gradient; the first has the
        type of the program, the others float32, as offsets and masks do.
      fixed: The same of arguments that have none.
      shared: Shapes of moving arguments that all images share.
      targets: Our calls on CUDA, forward and backward.
    """

    name: str
    function: Callable[..., jax.Array]
    moving: tuple[tuple[int, ...], ...]
    targets: frozenset[str]
    fixed: tuple[tuple[int, ...], ...] = ()
    shared: tuple[tuple[int, ...], ...] = ()

    def lower(self, mesh: Mesh, *, dtype: Any, mapped: bool = False) -> Any:
        """The lowered gradient of the operator, with its batch split over the mesh.

        Args:
          mesh: Its axis "data" splits the batch.
          dtype: Of maps and kernels.
          mapped: Whether it is the gradient of a vmap over two batches.
        """
        # Devices split what is outermost.
        copies = (2 * mesh.size,) if mapped else ()
        images = _IMAGES * (1 if mapped else mesh.size)
        split = NamedSharding(mesh, P("data"))
        everywhere = split if mapped else NamedSharding(mesh, P())

        def array(shape: tuple[int, ...], dtype: Any, place: NamedSharding) -> Any:
            return jax.ShapeDtypeStruct((*copies, *shape), dtype, sharding=place)

        arguments = [
            array((images, *shape), jnp.float32 if i else dtype, split)
            for i, shape in enumerate(self.moving)
        ]
        arguments += [array(shape, dtype, everywhere) for shape in self.shared]
        count = len(arguments)
        arguments += [
            array((images, *shape), jnp.float32, split) for shape in self.fixed
        ]

        def loss(*arguments: jax.Array) -> jax.Array:
            function = jax.vmap(self.function) if mapped else self.function
            return jnp.sum(jnp.sin(function(*arguments).astype(jnp.float32)))

        gradients = jax.value_and_grad(loss, tuple(range(count)))
        with jax.set_mesh(mesh):
            return jax.jit(gradients).lower(*arguments)


def operators() -> Iterator[Operator]:
    """Every operator; deform_conv2d once for each way through its kernels."""
    places = (*_MAP, 1, 9)
    targets = frozenset(_CONVOLUTION + name for name in (*_BACKWARD, "columns"))

    def convolution(name: str, *, groups: int = 1, mask: bool, **options: Any) -> Any:
        def function(x: Any, offset: Any, *rest: Any) -> jax.Array:
            *modulation, kernel = rest
            return xla_ops.deform_conv2d(
                x, offset, kernel, *modulation, feature_group_count=groups, **options
            )

        return Operator(
            name,
            function,
            ((*_MAP, _CHANNELS), (*places, 2), *((places,) if mask else ())),
            targets,
            shared=((3, 3, _CHANNELS // groups, _CHANNELS),),
        )

    yield convolution("deform_conv2d", mask=True)
    yield convolution("deform_conv2d, DCNv1", mask=False)
    yield convolution("deform_conv2d, full float32", mask=True, precision="highest")
    yield convolution("deform_conv2d, 32 groups", mask=True, groups=32)

    rois = ((_ROIS, 4),)

    def pooling(name: str, channels: int, *more: tuple[int, ...], **options: Any):
        operator = getattr(xla_ops, name)
        family = {
            "roi_align": "roi_pool",
            "deform_roi_pool": "roi_pool",
            "roi_pool": "max_roi_pool",
        }.get(name, "ps_roi_pool")

        def function(features: Any, *rest: Any) -> jax.Array:
            *moving, boxes = rest
            return operator(
                features,
                boxes,
                *moving,
                output_size=_BINS,
                spatial_scale=_SCALE,
                **options,
            )

        calls = frozenset(f"dcn_jax.{family}.{part}" for part in ("fwd", "bwd"))
        maps = ((*_MAP, channels), *more)
        return Operator(name, function, maps, calls, fixed=rois)

    bins = (_ROIS, *_BINS)
    yield pooling("roi_align", _CHANNELS)
    yield pooling("deform_roi_pool", _CHANNELS, (*bins, 2), bins)
    yield pooling("roi_pool", _CHANNELS)
    yield pooling("ps_roi_align", 49 * 8)
    yield pooling("ps_roi_pool", 49 * 8)
    yield pooling("deform_ps_roi_pool", 49 * 8, (*bins, 1, 2), bins, group_size=7)


def lower_nms(mesh: Mesh, *, dtype: Any, mapped: bool = False) -> Any:
    """The lowered suppression of 12,000 proposals an image."""
    copies = (2 * mesh.size,) if mapped else ()
    place = NamedSharding(mesh, P("data"))
    images = _IMAGES * (1 if mapped else mesh.size)

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct((*copies, images, *shape), dtype, sharding=place)

    def select(boxes: jax.Array, scores: jax.Array) -> Any:
        return xla_ops.nms(boxes, scores, iou_threshold=0.7, max_outputs=2000)

    function = jax.vmap(select) if mapped else select
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(array(12000, 4), array(12000))
