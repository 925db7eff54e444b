import jax
import pytest
from jax.sharding import PartitionSpec as P

from train import sharding


def test_the_mesh_divides_the_devices():
    assert sharding.make_mesh().shape == {"data": 8, "model": 1}
    assert sharding.make_mesh(2).shape == {"data": 4, "model": 2}
    one = sharding.make_mesh(devices=jax.devices()[:1])
    assert one.shape == {"data": 1, "model": 1}


@pytest.mark.parametrize("model", [0, 3])
def test_a_mesh_that_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match=r"`mesh.model` is \d; expected a divisor"):
        sharding.make_mesh(model)


@pytest.mark.parametrize("size", [0, 12])
def test_a_batch_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=r"`batch_size` is \d+; expected a multiple"):
        sharding.check_batch_size(size, sharding.make_mesh(), "batch_size")


def test_wide_layers_are_split_over_the_model_axis():
    leaves = {
        "fc": jax.ShapeDtypeStruct((12544, 1024), "float32"),
        "small": jax.ShapeDtypeStruct((16, 16), "float32"),
        "conv": jax.ShapeDtypeStruct((3, 3, 512, 512), "float32"),
    }
    whole = sharding.state_shardings(leaves, sharding.make_mesh())
    assert {name: s.spec for name, s in whole.items()} == dict.fromkeys(leaves, P())
    split = sharding.state_shardings(leaves, sharding.make_mesh(2))
    assert split["fc"].spec == P(None, "model")
    assert split["small"].spec == split["conv"].spec == P()


def test_a_rank_out_of_range_is_refused():
    with pytest.raises(ValueError, match="`process` is 2; expected 0 to 1"):
        sharding.join_cluster("localhost:1", 2, 2)


def test_several_processes_need_a_coordinator(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="`processes` is 2, without `coordinator`"):
        sharding.join_cluster("", 2, 0)


@pytest.mark.parametrize("coordinator", ["auto", "localhost:1"])
def test_a_cluster_that_cannot_be_joined_is_refused(monkeypatch, coordinator):
    def initialize(**arguments):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=rf"'{coordinator}'\): DEADLINE_EXCEEDED"):
        sharding.join_cluster(coordinator, 2, 1)
