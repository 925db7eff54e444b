"""The optimiser step, with the fast double in place of the detector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.detection.records import Batch
from tests.support import double
from tests.support.training import host, make, run
from train import inputs, sharding
from train.step import SkippedInARow

CLASSES = 3
TASK = double.DetectionDouble()
FROZEN = {"backbone.conv1.kernel", "backbone.conv1.bias"}


def tiny(rngs):
    return double.TinyDetector(CLASSES, rngs)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


def test_a_step_trains_and_keeps_what_is_frozen():
    state, step, mesh = make(tiny)
    before = host(state)
    after, (metrics,) = run(state, step, mesh, [double.batch()], TASK)
    assert after.step == 1 and after.skipped == 0
    assert metrics["lr"] == pytest.approx(0.1)
    terms = metrics["loss/class"] + metrics["loss/box"]
    assert metrics["loss"] == pytest.approx(terms)
    assert before.variables.keys() == after.variables.keys()
    changed = {
        path
        for path, value in before.variables.items()
        if (value != after.variables[path]).any()
    }
    assert before.variables.keys() - changed == FROZEN
    # Only what is trained has a place in the optimiser.
    (trace,) = (s.trace for s in before.opt_state if hasattr(s, "trace"))
    assert set(trace) == changed
    # The state that went in was given away.
    assert all(array.is_deleted() for array in state.variables.values())


def test_loss_falls():
    # The same random numbers without a rate tell what the training did.
    batches = [double.batch(seed=1)] * 30
    losses = {}
    for lr in (0.1, 0.0):
        _, metrics = run(*make(tiny, lr=lr), batches, TASK)
        losses[lr] = sum(float(m["loss"]) for m in metrics[-10:])
    assert losses[0.1] < 0.96 * losses[0.0]


def test_steps_repeat_bit_by_bit():
    batches = [double.batch(seed=i) for i in range(4)]
    first, metrics = run(*make(tiny), batches, TASK)
    second, again = run(*make(tiny), batches, TASK)
    assert_same_bits(first, second)
    assert_same_bits(metrics, again)


def test_random_numbers_follow_seed_and_step():
    batches = [double.batch()] * 6
    # Without a rate, only the random numbers tell the steps apart.
    _, metrics = run(*make(tiny, lr=0.0), batches, TASK)
    losses = {float(m["loss"]) for m in metrics}
    assert len(losses) > 1
    _, other = run(*make(tiny, lr=0.0, seed=1), batches, TASK)
    assert [m["loss"] for m in other] != [m["loss"] for m in metrics]


def test_eight_devices_take_the_step_of_one():
    batches = [double.batch(seed=i) for i in range(3)]
    one, metrics_one = run(*make(tiny), batches, TASK)
    eight, metrics_eight = run(*make(tiny, devices=8), batches, TASK)
    for a, b in zip(metrics_one, metrics_eight, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        host(one.variables),
        host(eight.variables),
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_with_a_nan_is_skipped(devices):
    state, step, mesh = make(tiny, devices=devices)
    state, _ = run(state, step, mesh, [double.batch()], TASK)
    before = host(state)
    bad = double.batch()
    bad["images"] = bad["images"].astype(np.float32)
    bad["images"][5, 0, 0, 0] = np.nan
    after, (metrics,) = run(state, step, mesh, [bad], TASK)
    assert not np.isfinite(metrics["loss"])
    assert_same_bits(before.variables, after.variables)
    assert_same_bits(before.opt_state, after.opt_state)
    assert after.step == 2 and after.skipped == 1 and metrics["skipped"] == 1
    # And training goes on.
    good, (metrics,) = run(after, step, mesh, [double.batch()], TASK)
    assert np.isfinite(metrics["loss"])
    assert (
        host(good.variables)["head.kernel"] != before.variables["head.kernel"]
    ).any()


class _InfiniteSlope(nnx.Module):
    """A finite loss with an infinite gradient."""

    def __init__(self, rngs):
        self.weight = nnx.Param(jnp.zeros(()))

    def losses(self, batch, key):
        return {"root": jnp.sqrt(jnp.abs(self.weight[...]))}


def test_a_step_with_a_bad_gradient_alone_is_skipped():
    state, step, mesh = make(_InfiniteSlope)
    after, (metrics,) = run(state, step, mesh, [double.batch()], TASK)
    assert np.isfinite(metrics["loss"])
    assert after.skipped == 1
    assert after.variables["weight"] == 0.0


def test_batches_become_global_arrays():
    mesh = sharding.make_mesh()
    batch = inputs.to_batch(double.batch(), TASK, mesh)
    assert isinstance(batch, Batch)
    assert batch.images.shape == (8, 32, 32, 3)
    assert batch.images.addressable_shards[0].data.shape == (1, 32, 32, 3)


def test_steps_skipped_in_a_row_end_a_run_that_goes_nowhere():
    skipped = SkippedInARow(10, 3)
    counts = [(11, 4), (12, 5), (13, 5), (15, 6), (15, 6), (16, 7), (18, 9)]
    expected = [1, 2, 0, 0, 0, 1, 3]
    for (step, number), count in zip(counts, expected, strict=True):
        skipped.update(step, number)
        assert skipped.count == count
    skipped.update(18 + skipped.LIMIT - 4, 9 + skipped.LIMIT - 4)
    skipped.check(1.0, last=True)
    skipped.update(18 + skipped.LIMIT - 3, 9 + skipped.LIMIT - 3)
    with pytest.raises(ValueError, match=r"last 50 steps.* Lower `optim\.lr`, .* 1,"):
        skipped.check(1.0, last=False)


@pytest.mark.parametrize(("skipped_before", "all_of_them"), [(2, True), (1, False)])
def test_a_short_run_of_skipped_steps_alone_ends_too(skipped_before, all_of_them):
    skipped = SkippedInARow(2, skipped_before)
    skipped.update(4, skipped_before + 2)
    skipped.check(1.0, last=False)
    if not all_of_them:
        skipped.check(1.0, last=True)
        return
    with pytest.raises(ValueError, match="last 4 steps, up to step 4, were skipped"):
        skipped.check(1.0, last=True)
