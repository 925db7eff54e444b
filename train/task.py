"""What a run needs of a task: its network, targets, metric, pictures and predictions.

The loop, the step, the loader, checkpoints and the programs know no more of a task than
stands here. A run is handed its task as a value; `train.tasks` has those that the field
`task` of a configuration may name.

Shape letters: N images, H W canvas.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from dcn_jax.images.geometry import Geometry
from train.config_dict import ConfigDict

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure


class Network(Protocol):
    """An NNX module that can be trained and asked.

    `images` are [N, H, W, 3] RGB of 0 to 255, padded at the right and bottom; `sizes`
    are [N, 2], the (height, width) of what is image.
    """

    @property
    def frozen_paths(self) -> tuple[str, ...]:
        """Beginnings of the dotted paths of parameters that are not trained."""
        ...

    def losses(self, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """Scalars whose sum is minimised; all random choices come from `key`."""
        ...

    def predict(self, images: jax.Array, sizes: jax.Array) -> Any:
        """A NamedTuple of arrays, each with one row for an image, or None."""
        ...

    def features(self, images: jax.Array, sizes: jax.Array) -> Any:
        """The maps that the predictions are made from."""
        ...


class Metric(Protocol):
    """What predictions are worth; one object for one evaluation."""

    def update(self, prediction: Any, image_id: int, geometry: Geometry) -> None:
        """Takes note of an image.

        Args:
          prediction: What `Network.predict` returned, this image's row, on the host.
          image_id: As in the data set.
          geometry: Of the image that the network saw.
        """
        ...

    def state(self) -> Any:
        """All that was taken note of, as JSON holds it."""
        ...

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces the state by those of all processes, its own among them."""
        ...

    def compute(self) -> dict[str, float | None]:
        """Returns the numbers by name; None where there is nothing to measure.

        A name is GROUP/NAME, as in "bbox/AP". The first three of a group are drawn as
        curves. A group whose name ends in "_per_class" is written to evaluation.json
        alone.
        """
        ...

    def files(self) -> dict[str, Any]:
        """What is written beside evaluation.json: name -> content for JSON."""
        ...

    def figures(self) -> Mapping[str, "Figure"]:
        """What is drawn beside evaluation.json: name, ending in ".png" -> figure."""
        ...


class Start(NamedTuple):
    """The weights that a run starts from."""

    values: dict[str, np.ndarray]  # by dotted path, for the variables of the file
    notes: tuple[str, ...]  # what the log should say of them


class Passes(NamedTuple):
    """What `train.explain` looks into: pure functions of a network and one image.

    Arguments of both begin with the network, `images` [1, H, W, 3] and `sizes` [1, 2].
    """

    # To the map [1, P, Q, F] whose positions are explained.
    map: Callable[[Any, jax.Array, jax.Array], jax.Array]
    # With a fourth argument, RoIs [1, B, 4], to their features [1, B, F]; None where
    # RoIs are not explained.
    rois: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array] | None
    # Of a pixel that says nothing, RGB of 0 to 255.
    mean_colour: tuple[float, float, float]


class Task(Protocol):
    """What is learned from which ground truth, and how it is judged and shown."""

    # NamedTuple of a training batch's global arrays: `images`, `sizes` and what
    # `targets` names.
    Batch: type[Any]
    # Fields of the configuration that a run keeps to its end, beside the optimiser.
    kept_fields: tuple[str, ...]
    # Name, in the folder of a run, of what `write_network` writes.
    network_file: str

    def check(self, config: ConfigDict) -> None:
        """Refuses a configuration with unknown, missing or wrong fields.

        Raises:
          ValueError: One line that names the fields at fault.
        """
        ...

    def architecture(self, config: ConfigDict) -> dict[str, Any]:
        """The fields, by dotted path, that weights depend on.

        A checkpoint with other values in them is refused.
        """
        ...

    def build(self, config: ConfigDict, num_classes: int, rngs: nnx.Rngs) -> Network:
        """Returns the configured network with fresh parameters.

        Raises:
          ValueError: An argument is out of its range.
        """
        ...

    def passes(self, network: Any) -> Passes:
        """Returns what is explained of a network.

        Args:
          network: As `build` made it, or with shapes in place of arrays.

        Raises:
          ValueError: It has nothing that could be.
        """
        ...

    def conventions(self, config: ConfigDict) -> dict[str, Any]:
        """Fields that the weights of `init_from` bring along: dotted path -> value.

        What JSON can hold, and nothing where a run starts from no weights.

        Raises:
          OSError: The file cannot be opened.
          ValueError: It cannot be read.
        """
        ...

    def weights(self, config: ConfigDict, network: Any) -> Start:
        """Reads the weights that a run starts from.

        Args:
          config: Its `init_from` names the file; "" is for none.
          network: With shapes in place of arrays.

        Raises:
          OSError: The file cannot be opened.
          ValueError: It is of another network, or missing where it is needed.
        """
        ...

    def write_network(
        self,
        folder: Path,
        config: ConfigDict,
        categories: Sequence[Mapping[str, Any]],
        variables: Mapping[str, np.ndarray],
    ) -> None:
        """Writes the trained network alone, in a form that `init_from` reads.

        Args:
          folder: Of the run.
          config: Its configuration.
          categories: Of the data set, {"id", "name"} each.
          variables: By dotted path.

        Raises:
          OSError: The file cannot be written.
          ValueError: The network cannot be described.
        """
        ...

    def usable(self, source: Any) -> np.ndarray:
        """Returns, [n] bool, which images have ground truth to train on."""
        ...

    def summary(self, source: Any, split: str, data: ConfigDict) -> str:
        """Returns one line about what of a split is used."""
        ...

    def targets(
        self, example: Any, geometry: Geometry, data: ConfigDict
    ) -> dict[str, np.ndarray]:
        """Returns the ground truth of one image, as it lies on the canvas.

        Args:
          example: From `train.data.source.Source`; its image is not resized yet.
          geometry: What the loader decided.
          data: The section `data` of the configuration.

        Returns:
          Field of `Batch` -> this image's row; rows of a field have one shape.
        """
        ...

    def metric(self, source: Any) -> Metric:
        """Returns a new metric for the images of a source."""
        ...

    def draw(
        self,
        image: np.ndarray,
        prediction: Any,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> np.ndarray:
        """Returns the image with its prediction drawn on it.

        Args:
          image: [h, w, 3], RGB, of `geometry.original`.
          prediction: As `Metric.update` takes it.
          geometry: From `image` to what the network saw.
          categories: Of the data set, {"id", "name"} each.
          score: What is less certain is not shown, where predictions are that and
            anything is more certain.
        """
        ...

    def draw_truth(
        self,
        image: np.ndarray,
        example: Any,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        data: ConfigDict,
    ) -> np.ndarray:
        """Returns the image with its ground truth drawn on it, as `draw` would.

        Args:
          image: [h, w, 3], RGB, that of the example in `geometry.size`.
          example: From `train.data.source.Source`.
          geometry: From the example's image to `image`.
          categories: Of the data set, {"id", "name"} each.
          data: The section `data` of the configuration.
        """
        ...

    def records(
        self,
        prediction: Any,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> list[dict[str, Any]]:
        """Returns what predictions.json says of one image; arguments as in `draw`."""
        ...
