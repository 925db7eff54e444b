"""A network that is asked about one image at a time."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from flax import nnx

from dcn_jax.images.files import read_image
from dcn_jax.images.geometry import Geometry
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.quoting import quoted

# A file's path, or an array [H, W, 3] uint8, RGB.
Image = str | os.PathLike | np.ndarray
Result = TypeVar("Result")


@runtime_checkable
class Network(Protocol):
    """What predicts."""

    def predict(self, images: Any, sizes: Any) -> Any:
        """Takes [N, H, W, 3] images on a canvas and [N, 2], what of each is image."""
        ...


class Predictor:
    """Asks a network about images of any size, one after the other.

    Args:
      network: With `predict`; of an NNX module it is compiled, once for each canvas.
      preprocessing: How an image comes onto its canvas.
    """

    def __init__(self, network: Network, preprocessing: Preprocessing):
        self.network, self.preprocessing = network, preprocessing
        self._predict = _compiled(network)

    def __call__(self, image: np.ndarray) -> tuple[Any, Geometry]:
        """Returns what is predicted of an image, on the host, and its geometry.

        Args:
          image: [H, W, 3] uint8, RGB.
        """
        canvas, geometry = self.preprocessing(image)
        sizes = np.asarray([geometry.size], np.int32)
        found = jax.device_get(self._predict(canvas[None], sizes))
        return jax.tree.map(lambda rows: rows[0], found), geometry

    def of(
        self,
        images: Any,
        result: Callable[[Any, Geometry], Result],
    ) -> Result | list[Result]:
        """Returns what `result` makes of an image, or a list for a sequence of them.

        Args:
          images: An `Image`, or a sequence of them.
          result: From what is predicted of one, and its geometry.

        Raises:
          OSError: A file cannot be opened.
          ValueError: An image is broken, too large, or no image.
          TypeError: It is of another type.
        """
        if isinstance(images, str | os.PathLike | np.ndarray):
            return result(*self(self.read(images)))
        if not isinstance(images, Sequence):
            images = [images]  # refused below
        return [result(*self(self.read(image))) for image in images]

    def read(self, image: Any) -> np.ndarray:
        """Returns an image as an array, a photograph upright; see `of`."""
        if isinstance(image, str | os.PathLike):
            return read_image(
                os.fspath(image), self.preprocessing.max_pixels, upright=True
            )
        if not isinstance(image, np.ndarray):
            raise TypeError(
                f"an image is {quoted(image)}; expected a path, or a NumPy array "
                "[H, W, 3] of uint8, RGB, such as `np.asarray(picture.convert('RGB'))`"
            )
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an image is {image.dtype} of shape {image.shape}; expected uint8 of "
                "shape (H, W, 3), RGB from 0 to 255"
            )
        height, width, _ = image.shape
        if not 0 < height * width <= self.preprocessing.max_pixels:
            raise ValueError(
                f"an image has {height} x {width} pixels; expected from 1 to "
                f"{self.preprocessing.max_pixels} (`max_pixels`)"
            )
        return image


def _compiled(network: Network) -> Callable[[Any, Any], Any]:
    if not isinstance(network, nnx.Module):
        return network.predict
    graph, state = nnx.split(network)

    @jax.jit
    def predict(state, images, sizes):
        return nnx.merge(graph, state).predict(images, sizes)

    return lambda images, sizes: predict(state, images, sizes)
