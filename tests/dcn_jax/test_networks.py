"""What the networks say of their arguments."""

import inspect
import re
import typing

import pytest
from flax import nnx

from dcn_jax import networks
from dcn_jax.networks import NETWORKS, faster_rcnn_fpn

# The classes that explain what several networks take.
SHARED = [networks.Stages, networks.TwoStages, networks.BoxStages]


def explained(item, heading):
    """Names that stand under a heading of a docstring."""
    text = (inspect.getdoc(item) or "") + "\n"
    section = re.search(rf"^{heading}:\n((?:  .*\n|\n)*)", text, re.MULTILINE)
    return re.findall(r"^  (\*{0,2}\w+): \S", section[1], re.MULTILINE)


@pytest.mark.parametrize("shared", SHARED)
def test_every_shared_argument_is_explained_where_it_stands(shared):
    # Those of the classes before it come first.
    before = SHARED[: SHARED.index(shared)]
    inherited = len(before[-1].__annotations__) if before else 0
    assert explained(shared, "Attributes") == [*shared.__annotations__][inherited:]


@pytest.mark.parametrize("network", NETWORKS.values())
def test_every_argument_is_explained_or_shared(network):
    *own, stages = inspect.signature(network).parameters.values()
    assert explained(network, "Args") == [*(p.name for p in own), f"**{stages.name}"]
    (shared,) = typing.get_args(stages.annotation)
    assert shared in SHARED
    assert f"**stages: See `{shared.__name__}`" in inspect.getdoc(network)


def test_masks_are_of_mask_rcnn_alone():
    stages = dict(backbone=dict(depths=(1, 1, 1, 1)), neck={}, rpn={}, box={})
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        faster_rcnn_fpn(3, **stages, pool={}, mask={}, rngs=nnx.Rngs(0))
