"""The operands of RoI pooling as one record.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image, h w bins of
a RoI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from xla_ops._jax import align


class RoIOperands(NamedTuple):
    """What a RoI pooling reads: arrays in the order in which kernels take them.

    Plain forms pass the record on for one image and for one box, too; the arrays are
    then without N, and without N and B.

    Attributes:
      maps: L maps that lead with N and end with C, such as [N, H, W, C] of their own H
        and W.
      boxes: [N, B, 4] as (y, x, height, width) in pixels of the box's own map. A box
        that is not finite pools to NaN.
      levels: [N, B] int32, which map each box reads; zeros for any other number.
      map_sizes: [N, L, 2] int32, (height, width) of the part of each map that counts.
      shift: How far each bin is moved, [N, B, h, w, ..., 2] as (dy, dx) in pixels of
        the box's map, or None. NaN pools to NaN, infinity to 0.
      mask: A factor for each bin, [N, B, h, w], or None.
    """

    maps: Sequence[jax.Array]
    boxes: jax.Array
    levels: jax.Array
    map_sizes: jax.Array
    shift: jax.Array | None = None
    mask: jax.Array | None = None

    def aligned(self) -> RoIOperands:
        """The same with the types that a primitive needs under a mesh: `align`."""
        maps_and_others = align(*self.maps, *self[1:])
        count = len(self.maps)
        return RoIOperands(maps_and_others[:count], *maps_and_others[count:])

    def flat(self) -> tuple[jax.Array, ...]:
        """The arrays that are there, as operands of a primitive."""
        return *self.maps, *(x for x in self[1:] if x is not None)

    def layout(self) -> dict[str, Any]:
        """What `from_flat` needs to know beside the arrays."""
        return dict(
            num_levels=len(self.maps),
            has_shift=self.shift is not None,
            has_mask=self.mask is not None,
        )

    @classmethod
    def from_flat(
        cls, operands: Sequence, *, num_levels: int, has_shift: bool, has_mask: bool
    ) -> RoIOperands:
        """The inverse of `flat`, also for shapes in place of arrays."""
        boxes, levels, map_sizes, *optional = operands[num_levels:]
        return cls(
            tuple(operands[:num_levels]),
            boxes,
            levels,
            map_sizes,
            optional[0] if has_shift else None,
            optional[-1] if has_mask else None,
        )
