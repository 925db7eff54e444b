"""One optimiser step: loss, gradient, update, and what becomes of a bad one."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from train.optim import Schedule
from train.sharding import divided, replicated
from train.skeleton import Skeleton, Variables

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a run carries from step to step, apart from its place in the data."""

    # All of the model's, those too that no step changes.
    variables: Variables
    # What the optimiser keeps for each trainable parameter.
    opt_state: Any
    # Steps done, skipped ones included.
    step: Int[Array, ""]
    # Steps whose loss or gradient was not finite, and that changed nothing.
    skipped: Int[Array, ""]


def init_state(
    variables: Variables,
    trainable: frozenset[str],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      variables: The model's.
      trainable: The paths of those that the optimiser changes.
      optimizer: See `train.optim.make_optimizer`.
    """
    return TrainState(
        variables=variables,
        opt_state=optimizer.init(_select(variables, trainable)),
        step=jnp.int32(0),
        skipped=jnp.int32(0),
    )


def _select(variables: Variables, paths: Iterable[str]) -> Variables:
    return {path: variables[path] for path in paths}


class SkippedInARow:
    """Counts the steps that were skipped since the last that was not.

    A run ends when they are `LIMIT`: nothing of its state changes any more but the
    step counter, and what that changes, the random samples, did not help.

    Args:
      step: Steps done when counting starts.
      skipped: How many of these were skipped.
    """

    LIMIT = 50

    def __init__(self, step: int, skipped: int):
        self._step, self._skipped = step, skipped
        self.count = step if skipped == step else 0

    def update(self, step: int, skipped: int) -> None:
        """Takes note of the counters `step` and `skipped` after a later step."""
        new, new_skipped = step - self._step, skipped - self._skipped
        self.count = self.count + new if new_skipped == new else 0
        self._step, self._skipped = step, skipped

    def check(self, lr: float, *, last: bool) -> None:
        """Ends a run that goes nowhere.

        Args:
          lr: The field `optim.lr`, which is the first to look at.
          last: Whether the run's last step was done.

        Raises:
          ValueError: The last `LIMIT` steps were all skipped, or, of a shorter run, all
            that it has.
        """
        if self.count >= self.LIMIT or (last and self.count == self._step):
            raise ValueError(
                f"The last {self.count} steps, up to step {self._step}, were skipped, "
                f"as their loss or gradient was not finite: the run has diverged. "
                f"Lower `optim.lr`, which is {lr:g}, or warm up longer "
                f"(`optim.warmup_steps`)."
            )


def make_train_step(
    skeleton: Skeleton,
    trainable: frozenset[str],
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    seed: int,
    mesh: Mesh,
    shardings: TrainState,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Returns the compiled step; it consumes (donates) the state it is given.

    A step is a pure function of state and batch: its random numbers come from the seed
    and the step counter. Where the loss or the gradient's norm is not finite,
    parameters and optimiser keep their bits and `skipped` rises by one.

    Args:
      skeleton: The model without its arrays.
      trainable: Paths of the variables that are changed; the others keep their bits.
      optimizer: Transformation of the gradients, see `train.optim.make_optimizer`.
      schedule: Learning rate at a step.
      seed: Of all random choices in the losses.
      mesh: Batches are divided over its axis `data`.
      shardings: Placement of the state.
    """

    def loss_of(params: Variables, variables: Variables, batch: Any, key: jax.Array):
        losses = skeleton.model(variables | params).losses(batch, key)
        return sum(losses.values()), losses

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        before = _select(state.variables, trainable)
        (loss, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(
            before, state.variables, batch, key
        )
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        rate = schedule(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, before)
        after = jax.tree.map(lambda p, u: p - rate * u, before, updates)

        def keep_if_bad(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        skipped = state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
        metrics = {f"loss/{name}": value for name, value in losses.items()}
        metrics |= {"loss": loss, "lr": rate, "grad_norm": grad_norm}
        metrics["skipped"] = skipped
        return (
            TrainState(
                variables=state.variables | keep_if_bad(after, before),
                opt_state=keep_if_bad(opt_state, state.opt_state),
                step=state.step + 1,
                skipped=skipped,
            ),
            metrics,
        )

    return jax.jit(
        step,
        in_shardings=(shardings, divided(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
