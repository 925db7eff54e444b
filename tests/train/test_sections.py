"""Sections from constructors: fields, defaults, and where they are explained."""

import dataclasses
import inspect
import re

import pytest
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.networks import MASK_NETWORKS, NETWORKS, POOL_LAYERS
from train.configs import _base, _detection, _segmentation, digits
from train.sections import arguments_of, construct


@dataclasses.dataclass(frozen=True)
class Selection:
    """How boxes are chosen.

    Args:
      count: At most so many.
      iou: Of the suppression.
    """

    count: int = 100
    iou: float = 0.5


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How anchors are sampled.

    Args:
      share: Of positives.
      among: Those that are sampled.
    """

    share: float = 0.25
    among: Selection = Selection(iou=0.7)


class Head(nnx.Module):
    """Takes what a head may take."""

    def __init__(
        self,
        in_features,
        name,
        *,
        sides=(1, 2),
        train=Selection(),
        sampling=Sampling(),
        mask=None,
        dtype=float,
        rngs,
    ):
        self.given = (in_features, name, sides, train, sampling, mask, dtype, rngs)


def test_a_section_has_the_arguments_with_values():
    section = arguments_of(Head, name="box", train=Selection(iou=0.9))
    assert section.to_dict() == {
        "name": "box",
        "sides": (1, 2),
        "train": {"count": 100, "iou": 0.9},
        "sampling": {"share": 0.25, "among": {"count": 100, "iou": 0.7}},
    }


def test_construct_is_the_inverse():
    section = arguments_of(Head, name="box", sides=(3,))
    section.train.iou = 0.1
    section.sampling.among.count = 7
    head = construct(Head, section, in_features=5, rngs=None)
    among = Selection(count=7, iou=0.7)
    expected = (5, "box", (3,), Selection(iou=0.1), Sampling(among=among))
    assert head.given == (*expected, None, float, None)


def test_functions_have_sections_too():
    def network(num_classes, *, width=8):
        return num_classes * width

    assert construct(network, arguments_of(network, width=2), num_classes=3) == 6


def test_a_change_of_no_argument_is_refused():
    with pytest.raises(TypeError, match="ResNet has no argument `depth`; it has"):
        arguments_of(ResNet, depth=(1, 1, 1, 1))


def test_a_section_is_locked_as_any_other():
    config = digits.get_config()
    config.lock()
    with pytest.raises(AttributeError, match='Did you mean "depths" instead of "dept'):
        config.model.backbone.depthss = (1, 1, 1, 1)


# Arguments that a network wires, or that nothing of it reads.
LEFT_OUT = {
    "rpn": {"num_classes"},
    ("class_aware_rpn", "rpn"): {"num_classes", "train", "test"},
    ("deeplab", "neck"): {"rpn_on_conv5"},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_section_of_a_network_has_its_constructor(network):
    tasks = [task for task in (_detection, _segmentation) if network in task.NETWORKS]
    (fields,) = tasks
    config, made = fields.get_config(network), fields.constructors(network)
    assert set(config) - set(_base.get_config()) == {"network", "model"}
    given = {
        name for name, value in config.model.items() if not isinstance(value, bool)
    }
    pools = {"pool_layer", "pool"} if "box" in made else set()
    pools |= {"mask_pool"} if network in MASK_NETWORKS else set()
    assert given == {*made, *pools}
    for name, make in made.items():
        # Only changes and required arguments are written beside it.
        left_out = LEFT_OUT.get((network, name), LEFT_OUT.get(name, set()))
        assert set(config.model[name]) >= set(arguments_of(make)) - left_out
        assert not set(config.model[name]) & left_out
    fields.check(config)


def constructors(make):
    """A constructor, and those of the records among its defaults."""
    yield make
    signature = inspect.signature(make.__init__ if isinstance(make, type) else make)
    for parameter in signature.parameters.values():
        if dataclasses.is_dataclass(parameter.default):
            yield from constructors(type(parameter.default))


def explained(make):
    """The arguments that stand under `Args:` of a docstring, by Google's rules."""
    text = inspect.getdoc(make) or ""
    section = re.search(r"^Args:\n((?:  .*\n|\n)*)", text + "\n", re.MULTILINE)
    return re.findall(r"^  (\w+): \S", section[1], re.MULTILINE) if section else []


def test_records_are_constructors_too():
    found = list(constructors(Head))
    assert found == [Head, Selection, Sampling, Selection]
    assert explained(Head) == [] and explained(Sampling) == ["share", "among"]


CONSTRUCTORS = [
    *(
        make
        for fields in (_detection, _segmentation)
        for name in fields.NETWORKS
        for make in fields.constructors(name).values()
    ),
    *POOL_LAYERS.values(),
]


@pytest.mark.parametrize("make", dict.fromkeys(CONSTRUCTORS))
def test_every_argument_is_explained_where_it_stands(make):
    for part in constructors(make):
        parameters = inspect.signature(part.__init__).parameters
        assert explained(part) == list(parameters)[1:], part
