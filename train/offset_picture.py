"""How the filters of a network move on an image, as a figure."""

import logging
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from dcn_jax.explain import OffsetField, first_in_pixels, offset_fields
from dcn_jax.images.geometry import Geometry
from dcn_jax.quoting import one_line
from train import draw, sharding
from train.skeleton import Skeleton, Variables

_log = logging.getLogger("train")
# Of the deformable layers, so many of the last are shown.
_LAYERS = 4


class OffsetPicture:
    """Draws the offsets of a network; the compiled program is kept between calls."""

    def __init__(self, skeleton: Skeleton, mesh: Mesh):
        def find(variables: Variables, images: jax.Array, sizes: jax.Array):
            model = skeleton.model(variables)
            fields = offset_fields(model, lambda model: model.features(images, sizes))
            return {name: _first(field) for name, field in fields.items()}

        self._find = jax.jit(find, out_shardings=sharding.replicated(mesh))

    def fields(
        self, variables: Variables, arrays: Mapping[str, jax.Array]
    ) -> dict[str, OffsetField]:
        """Returns the offsets on the first image of a batch, by layer.

        All processes call it together.

        Args:
          variables: The network's.
          arrays: `images` and `sizes` of the batch.
        """
        try:
            return jax.device_get(self._find(variables, **arrays))
        except ValueError as error:
            # As of a layer that runs inside of a transformation.
            _log.info("no picture of the offsets: %s", one_line(str(error)))
            return {}

    def png(
        self, fields: Mapping[str, OffsetField], image: np.ndarray, geometry: Geometry
    ) -> bytes | None:
        """Returns a PNG of the last layers, or None where there are none.

        Args:
          fields: Of all layers.
          image: [h, w, 3], RGB, of `geometry.size`.
          geometry: Of the first image.
        """
        shown = {}
        for name in sorted(fields, key=_natural)[-_LAYERS:]:
            try:
                found = first_in_pixels(fields[name], geometry.canvas, geometry.size)
            except ValueError as error:
                _log.info("no picture of the offsets of %s: %s", name, error)
                continue
            # An image smaller than a cell has no place.
            if found.centre.size:
                shown[name] = found
        if not shown:
            return None
        from dcn_jax.explain.figures import offset_row

        title = "offsets of the last deformable layers on the first image"
        return draw.figure_png(offset_row(image, title, shown))


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders "layer3.9" before "layer3.22"; what jit returns is ordered by letters."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _first(field: OffsetField) -> OffsetField:
    mask = None if field.mask is None else field.mask[:1]
    return field._replace(offset=field.offset[:1], mask=mask)
