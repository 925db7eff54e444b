import jax
import numpy as np
import pytest

from tests.train import double
from tests.train.test_step import host, make, run
from train import sharding
from train.checkpoint import Checkpoints, abstract

DESCRIPTION = {
    "model": {"backbone.depths": (1, 2, 1, 1), "detector.roi_pooling": "deform"},
    "categories": [{"id": 1, "name": "one"}],
    "config": {},
}
TWO = [{"id": 2, "name": "two"}]
PLACE = {"next_index": 7}


def tiny(rngs):
    return double.TinyDetector(3, rngs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoint of step 2; that state, and the one after step 4."""
    folder = tmp_path_factory.mktemp("run")
    batches = [double.batch(seed=i) for i in range(4)]
    state, step, mesh = make(tiny)
    state, _ = run(state, step, mesh, batches[:2])
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(state, PLACE, DESCRIPTION)
    checkpoints.close()
    at_two = host(state)
    state, _ = run(state, step, mesh, batches[2:])
    return folder, at_two, host(state)


def like_of(state, mesh):
    return abstract(state, sharding.state_shardings(state, mesh))


@pytest.mark.parametrize("devices", [1, 8])
def test_restored_state_has_the_same_bits(saved, devices):
    folder, at_two, _ = saved
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest() == 2
    state, data = checkpoints.restore(2, like_of(at_two, mesh))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, at_two, host(state))
    assert data == PLACE
    assert state.step.sharding.num_devices == devices


def test_a_resumed_run_ends_at_the_same_bits(saved):
    folder, at_two, at_four = saved
    _, step, mesh = make(tiny)
    checkpoints = Checkpoints(folder, keep=2)
    state, _ = checkpoints.restore(2, like_of(at_two, mesh))
    checkpoints.close()
    state, _ = run(state, step, mesh, [double.batch(seed=i) for i in (2, 3)])
    jax.tree.map(np.testing.assert_array_equal, at_four, host(state))


def test_variables_come_without_the_optimiser(saved):
    folder, at_two, _ = saved
    expected = {**at_two.params, **at_two.frozen}
    like = like_of(expected, sharding.make_mesh())
    variables = Checkpoints(folder).restore_variables(2, like)
    jax.tree.map(np.testing.assert_array_equal, expected, host(variables))


def test_the_model_is_checked(saved):
    folder, at_two, _ = saved
    checkpoints = Checkpoints(folder)
    variables = {**at_two.params, **at_two.frozen}
    checkpoints.check(2, DESCRIPTION, variables)
    other = {**DESCRIPTION, "model": {**DESCRIPTION["model"], "backbone.depths": (3,)}}
    with pytest.raises(ValueError, match=r"depths` was \[1, 2, 1, 1\], .* says \[3\]"):
        checkpoints.check(2, other, variables)
    renamed = {**DESCRIPTION, "categories": [{"id": 1, "name": "uno"}]}
    with pytest.raises(ValueError, match=r"differ was \(1, 'one'\), now \(1, 'uno'\)"):
        checkpoints.check(2, renamed, variables)
    more = {**DESCRIPTION, "categories": [*DESCRIPTION["categories"], *TWO]}
    with pytest.raises(ValueError, match=r"the 2 of .* was None, now \(2, 'two'\)"):
        checkpoints.check(2, more, variables)
    with pytest.raises(ValueError, match=r"of another model: it has the array head"):
        head = {k: v for k, v in variables.items() if k != "head.kernel"}
        checkpoints.check(2, DESCRIPTION, head)
    with pytest.raises(
        ValueError, match=r"head.bias has shape \(3,\); expected \(5,\)"
    ):
        wide = {**variables, "head.bias": np.zeros(5)}
        checkpoints.check(2, DESCRIPTION, wide)


def test_unfinished_checkpoints_are_ignored_and_old_ones_dropped(saved, tmp_path):
    _, at_two, _ = saved
    state, step, mesh = make(tiny)
    checkpoints = Checkpoints(tmp_path, keep=2)
    for i in range(3):
        state, _ = run(state, step, mesh, [double.batch(seed=i)])
        checkpoints.save(state, PLACE, DESCRIPTION)
    # Saving a step again changes nothing.
    checkpoints.save(state, PLACE, DESCRIPTION)
    checkpoints.close()
    folder = tmp_path / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"2", "3"}
    # What a kill in the middle of a save leaves.
    (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")
    (folder / "3.orbax-checkpoint-tmp" / "commit_success.txt").unlink()
    again = Checkpoints(tmp_path, keep=2)
    assert again.latest() == 2
    restored, _ = again.restore(2, like_of(at_two, mesh))
    assert restored.step == 2
    again.save(state, PLACE, DESCRIPTION)
    assert again.latest() == 3
    again.close()


def test_a_failed_save_is_raised(saved, tmp_path):
    _, at_two, _ = saved
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(TypeError):
        checkpoints.save(at_two, {"not": object()}, DESCRIPTION)
    checkpoints.close()
