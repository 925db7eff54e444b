import json
import logging
import shutil

import jax
import numpy as np
import pytest

from tests.support import double
from tests.support.training import host, make, run
from train import sharding
from train.checkpoint import Checkpoints, abstract
from train.digests import write_digests

TASK = double.DetectionDouble()
DESCRIPTION = {
    "model": {"model.backbone.depths": (1, 2, 1, 1), "model.pool_layer": "RoIAlign"},
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
    state, _ = run(state, step, mesh, batches[:2], TASK)
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(state, PLACE, DESCRIPTION)
    checkpoints.close()
    at_two = host(state)
    state, _ = run(state, step, mesh, batches[2:], TASK)
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
    state, _ = run(state, step, mesh, [double.batch(seed=i) for i in (2, 3)], TASK)
    jax.tree.map(np.testing.assert_array_equal, at_four, host(state))


def test_variables_come_without_the_optimiser(saved):
    folder, at_two, _ = saved
    expected = at_two.variables
    like = like_of(expected, sharding.make_mesh())
    variables = Checkpoints(folder).restore_variables(2, like)
    jax.tree.map(np.testing.assert_array_equal, expected, host(variables))


def test_the_model_is_checked(saved):
    folder, at_two, _ = saved
    checkpoints = Checkpoints(folder)
    variables = at_two.variables
    checkpoints.check(2, DESCRIPTION, variables)
    other = {
        **DESCRIPTION,
        "model": {**DESCRIPTION["model"], "model.backbone.depths": (3,)},
    }
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
        state, _ = run(state, step, mesh, [double.batch(seed=i)], TASK)
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


@pytest.fixture
def two(saved, tmp_path):
    """A folder of its own, with sound checkpoints of steps 2 and 3."""
    folder, _, _ = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "checkpoints" / "2", tmp_path / "checkpoints" / "3")
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 1
    path.write_bytes(text)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
def test_damage_of_any_file_is_found(two, damage):
    newest = two / "checkpoints" / "3"
    checkpoints = Checkpoints(two)
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        text = path.read_bytes()
        damage(path)
        name = path.relative_to(newest)
        with pytest.raises(
            ValueError,
            match=rf"3 is damaged: .*{'' if 'digests' in name.name else name}",
        ):
            checkpoints.latest()
        path.write_bytes(text)
    assert checkpoints.latest() == 3


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def lose_an_item(folder):
    shutil.rmtree(folder / "train")


def be_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


def be_a_link(folder):
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "nowhere")


def list_odd_digests(text):
    return lambda folder: (folder / "digests.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (empty, "it is empty"),
        (lose_an_item, "'train/_METADATA' is missing"),
        (be_a_file, "it is no folder"),
        (be_a_link, "it is no folder"),
        (list_odd_digests("[" * 100_000), "'digests.json' cannot be read"),
        (list_odd_digests("[]"), "'digests.json' holds no digests"),
        (list_odd_digests("{}"), "'digests.json' holds no digests"),
        (list_odd_digests('{"../../\\u001b": 1}'), r"'../../\x1b' is missing"),
        (list_odd_digests(json.dumps({"a" * 5000: ""})), "aaa' cannot be read"),
        (list_odd_digests(json.dumps({"model/_METADATA": [1]})), "has other bytes"),
    ],
)
def test_a_run_puts_damaged_checkpoints_aside(two, saved, caplog, damage, said):
    _, _, at_four = saved
    folder = two / "checkpoints"
    damage(folder / "3")
    checkpoints = Checkpoints(two, keep=2)
    with caplog.at_level(logging.WARNING, logger="train"):
        assert checkpoints.recover() == 2
    (message,) = caplog.messages
    assert "the checkpoint of step 3 is damaged" in message and said in message
    assert message.endswith("now called 3.damaged; going on from step 2 instead")
    assert len(message) < 500 and message.isprintable()
    assert checkpoints.steps() == [2]
    # It is in nobody's way.
    checkpoints.save(at_four._replace(step=np.int32(3)), PLACE, DESCRIPTION)
    assert Checkpoints(two).latest() == 3
    damage(folder / "3")
    assert Checkpoints(two, keep=2).recover() == 2
    assert {"2", "3.damaged", "3.damaged-2"} == {p.name for p in folder.iterdir()}


def test_a_run_does_not_start_over_beside_damaged_checkpoints(two):
    for step in "23":
        flip(two / "checkpoints" / step / "model" / "_METADATA")
    said = r"None of the 2 checkpoints in .*step 3: 'model/_METADATA' has other bytes"
    with pytest.raises(ValueError, match=said):
        Checkpoints(two, keep=2).recover()
    with pytest.raises(ValueError, match=r"3 is damaged: .* No other is sound\."):
        Checkpoints(two).latest()
    assert Checkpoints(two).steps() == [2, 3]


def test_names_that_are_no_steps_are_left_alone(two):
    names = ("007", "+4", "5 ", "²", "backup_tmp", "last")
    for name in names:
        (two / "checkpoints" / name).mkdir()
    checkpoints = Checkpoints(two, keep=2)
    assert checkpoints.recover() == 3 and checkpoints.steps() == [2, 3]
    assert all((two / "checkpoints" / name).is_dir() for name in names)


def rewrite(folder, change):
    """Changes the description of a checkpoint as if it had been written so."""
    path = folder / "description" / "metadata"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    (folder / "digests.json").unlink()
    write_digests(folder)


@pytest.mark.parametrize("layout", [1, 3])
def test_a_checkpoint_of_another_layout_is_refused(two, saved, layout):
    _, at_two, _ = saved

    def change(description):
        # The first one had no number.
        del description["layout"]
        if layout > 1:
            description["layout"] = layout

    rewrite(two / "checkpoints" / "3", change)
    checkpoints = Checkpoints(two, keep=2)
    assert checkpoints.recover() == 3
    said = rf"3 has layout {layout}, of another version .* reads layout 2\. .* anew\.$"
    with pytest.raises(ValueError, match=said) as caught:
        checkpoints.check(3, DESCRIPTION, at_two.variables)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_digests_is_damaged(two):
    (two / "checkpoints" / "3" / "digests.json").unlink()
    with pytest.raises(ValueError, match=r"3 is damaged: 'digests\.json' is missing"):
        Checkpoints(two).latest()


# orbax leaves coroutines behind, of a loop that is closed, where a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_that_cannot_be_read_gets_one_line(two, saved):
    _, at_two, _ = saved
    (two / "checkpoints" / "3" / "model" / "manifest.ocdbt").unlink()
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match=r"checkpoints/3 cannot be read: "):
        Checkpoints(two, keep=2).restore(3, like_of(at_two, mesh))


NO_SPACE = "Failed to write 9 bytes to file 7: No space left on device"


@pytest.mark.parametrize(
    # Python's own way to say it, and tensorstore's.
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError(f"RESOURCE_EXHAUSTED: {NO_SPACE}"),
    ],
)
def test_a_full_disk_keeps_the_older_checkpoints(two, saved, monkeypatch, error):
    _, _, at_four = saved
    folder = two / "checkpoints"

    def save(self, path, *, args):
        (folder / f"{path.name}.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
        raise error

    checkpoints = Checkpoints(two, keep=2)
    assert checkpoints.recover() == 3
    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.Checkpointer.save", save)
        said = (
            rf"Cannot save the checkpoint of step 4 in {folder}: No space left on "
            r"device\. Kept: the checkpoints of steps \[2, 3\]\."
        )
        with pytest.raises(OSError, match=said):
            checkpoints.save(at_four, PLACE, DESCRIPTION)
    # What was begun takes up no space.
    assert {path.name for path in folder.iterdir()} == {"2", "3"}
    checkpoints.save(at_four, PLACE, DESCRIPTION)
    assert checkpoints.steps() == [3, 4] and checkpoints.latest() == 4


def test_what_a_killed_process_left_is_dropped(two):
    folder = two / "checkpoints"
    for name in ("4.tmp", "4.tmp.orbax-checkpoint-tmp", "1.old.tmp", "my_tmp"):
        (folder / name / "model").mkdir(parents=True)
    Checkpoints(two)
    assert len(list(folder.iterdir())) == 6
    Checkpoints(two, keep=2)
    assert {path.name for path in folder.iterdir()} == {"2", "3", "my_tmp"}
