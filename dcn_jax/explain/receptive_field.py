"""Effective receptive fields: which pixels a node listens to.

Shape letters: K nodes, D numbers that name one, H W image, C its channels, F channels
of a response.

Source: Luo et al. 2016 (arXiv:1701.04128); Zhu et al. 2019 (arXiv:1811.11168) section
2, where it is the gradient of a node's response by the intensity of each pixel.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from dcn_jax.explain.models import Call, check_model, copy_of
from dcn_jax.explain.nodes import Nodes, check_image, pull_back
from dcn_jax.modules.arguments import check_number


class ReceptiveField(NamedTuple):
    """How the responses of nodes change with each pixel."""

    gradient: Float[Array, "K H W C"]  # of the response's norm
    response: Float[Array, "K F"]

    @property
    def strength(self) -> Float[Array, "K H W"]:
        """Norm of the gradient over a pixel's channels.

        It is the greatest change of the response for a small change of the pixel's
        colour; gradients of opposite signs in two channels do not cancel.
        """
        return jnp.linalg.norm(self.gradient, axis=-1)


def effective_receptive_field(
    model: Any, call: Call, image: Num[Array | np.ndarray, "H W C"], nodes: Nodes
) -> ReceptiveField:
    """The gradient of nodes' responses by every pixel.

    What a node is, its response, and the gradient of a vector: see
    `dcn_jax.explain.nodes`. The gradient includes what passes through offsets and
    masks. Frozen stages of a `ResNet` pass it; what a model of your own cuts by
    `jax.lax.stop_gradient` stays cut.

    It is a pure function: under `jax.jit` (of a function of model, image and nodes) all
    nodes are one program. Memory grows with their number.

    Args:
      model: An NNX module, or a Linen module bound to its variables. It is not changed.
      call: The pass, given a copy of the model and the image as a batch of one, floats.
        Returns a map [1, P, Q, F] or features of RoIs [1, B, F]; for a node after the
        second fully connected layer of a detector
        `lambda model, x: model.roi.represent(model.features(x, sizes), rois)`.
      image: As the model takes it.
      nodes: [K, 2], (y, x) of positions of the map, or [K, 1], RoIs.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: A shape is wrong, or a node is not there.
    """
    model, image = check_model(model), check_image(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        image = image.astype(jnp.float32)
    found = pull_back(lambda x: call(copy_of(model), x[None]), image, nodes)
    return ReceptiveField(found.gradient, found.response)


def area_side(
    strength: Float[Array, "*s H W"], share: float = 0.0455
) -> Float[Array, "*s"]:
    """Side of a square of as many pixels as are above a share of the strongest.

    Args:
      strength: Of pixels.
      share: That of Luo et al. by default, where a Gaussian is at two deviations.
    """
    strongest = jnp.max(strength, axis=(-2, -1), keepdims=True)
    count = jnp.sum(strength > share * strongest, axis=(-2, -1))
    return jnp.sqrt(count.astype(strength.dtype))


def square_side(
    strength: Float[Array, "*s H W"],
    pixel: tuple[int | Int[Array, ""], int | Int[Array, ""]],
    share: float = 0.99,
) -> Float[Array, "*s"]:
    """Side of the smallest square round a pixel that holds a share of all strength.

    Parts of the square may lie outside of the image. Without any strength it is 1.

    Args:
      strength: Of pixels.
      pixel: (y, x) of the centre.
      share: Ding et al. 2022 (arXiv:2203.06717) report 0.2, 0.3, 0.5 and 0.99.

    Raises:
      ValueError: The share is not above 0 and at most 1.
    """
    if not 0 < check_number("share", share) <= 1:
        raise ValueError(f"`share` is {share}; expected it above 0 and at most 1")
    rows, columns = (
        jnp.abs(jnp.arange(size) - centre)
        for size, centre in zip(strength.shape[-2:], pixel, strict=True)
    )
    distance = jnp.maximum(rows[:, None], columns[None])
    rings = jnp.zeros_like(strength, shape=(*strength.shape[:-2], max(distance.shape)))
    held = jnp.cumsum(rings.at[..., distance].add(strength), axis=-1)
    enough = held >= share * held[..., -1:]
    return (2 * jnp.argmax(enough, axis=-1) + 1).astype(strength.dtype)
