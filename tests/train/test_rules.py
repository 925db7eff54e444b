"""What a configuration may hold, from the fields' rules to a file of one's own."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from tests.support import launch
from train.configs import _detection, ablation, coco_faster_rcnn, digits
from train.tasks import TASKS


def paths(section, prefix=""):
    for name, value in section.items():
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


# The network with the most fields.
NETWORK = "mask_rcnn_fpn"
# Every field, and a network that has it: if it can be, that one.
FIELDS = {
    path: network
    for network in (*_detection.NETWORKS, NETWORK)
    for path in paths(_detection.get_config(network).to_dict())
}


def changed(path, value):
    """The defaults with another value, past the type checks of ml_collections."""
    config = _detection.get_config(FIELDS.get(path, NETWORK))
    *sections, name = path.split(".")
    section = config
    for key in sections:
        section = section[key]
    if name in section:
        del section[name]
    section[name] = value
    return config


def fault(config):
    with pytest.raises(ValueError) as caught:
        _detection.check(config)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 2000
    return text


@pytest.mark.parametrize(
    "config",
    [
        *map(_detection.get_config, _detection.NETWORKS),
        *(coco_faster_rcnn.get_config(row) for row in ("", "dcnv1", "regular,800")),
    ],
)
def test_our_own_are_accepted(config):
    _detection.check(config)


ON_DIGITS = ("", "regular", "dcnv1", "fpn", "mask", "rfcn", "rpn", "deeplab")
STUDIES = [
    f"{name}/{row}"
    for name, rows in ablation.STUDIES.items()
    for row in (ablation.START, *rows)
]


@pytest.mark.parametrize(
    "config",
    [
        *map(digits.get_config, ON_DIGITS),
        *map(ablation.get_config, STUDIES),
    ],
    ids=lambda config: config.name,
)
def test_our_own_on_digits_are_accepted(config):
    TASKS[config.task].check(config)


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_refuses_what_it_cannot_be(path):
    section = ConfigDict({"more": 1})
    huge = 10**5000
    for value in (None, b"1", {1}, huge, float("nan"), (None,), "\0", section):
        assert f"`{path}` is " in fault(changed(path, value))


@pytest.mark.parametrize("path", _detection.RULES)
def test_every_rule_is_of_a_field(path):
    assert path in FIELDS


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", -1),
        ("seed", True),
        ("steps", 2**31),
        ("epochs", -1.0),
        ("epochs", float("inf")),
        ("batch_size", 0),
        ("name", ""),
        ("data.canvases", ()),
        ("data.canvases", (64, 64)),
        ("data.canvases", ((64, 64, 3),)),
        ("data.canvases", ((64, 0),)),
        ("data.canvases", ((10**6, 10**6),)),
        ("data.short_sides", (48, -1)),
        ("data.crop", 64),
        ("data.crop", (64,)),
        ("data.crop", (0, 64)),
        ("data.crop", (64, 64, 3)),
        ("data.flip", 1),
        ("data.max_boxes", -1),
        ("data.max_boxes", 10**9),
        ("data.mask_size", 7),
        ("data.mask_size", 513),
        ("data.mask_size", -8),
        ("data.mask_size", False),
        ("data.workers", -1),
        ("data.workers", 1.0),
        ("data.workers", 257),
        ("model.backbone.depths", (1, 1.5, 1, 1)),
        ("model.backbone.deform_blocks", (0, True, 1, 1)),
        ("model.rpn.anchor_sizes", 32),
        ("model.rpn.anchor_sizes", (32.0, 0.0)),
        ("model.rpn.train.pre_nms_top_n", (100, 100)),
        ("model.rpn.train.pre_nms_top_n", 0),
        ("model.backbone.dilation", 0),
        ("model.sampling.positive_fraction", 1.5),
        ("model.sampling.hardest", -1),
        ("model.psroi.bins", 0),
        ("model.selection.nms_iou", -0.1),
        ("optim.name", "lion"),
        ("optim.lr", -1.0),
        ("optim.lr", "0.1"),
        ("optim.warmup_steps", -1),
        ("optim.decay_at", (0.8, 0.5)),
        ("optim.decay_at", (0.5, 0.5)),
        ("optim.decay_at", (0.0, 0.5)),
        ("optim.decay_at", (0.5, 1.5)),
        ("optim.lr_multipliers", (("(", 0.1),)),
        ("optim.lr_multipliers", ("head", 0.1)),
        ("optim.lr_multipliers", (("head", -0.1),)),
        ("log.every", 0),
        ("checkpoint.every", -1),
        ("checkpoint.keep", 0),
        ("eval.every", -1),
    ],
)
def test_ranges_and_shapes(path, value):
    assert fault(changed(path, value)).startswith(f"`{path}` is ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("steps", 2**31 - 1),
        ("epochs", 12),
        ("data.canvases", [[64, 64], [64, 96]]),
        ("data.crop", ()),
        ("data.crop", [64, 96]),
        ("model.rpn.anchor_sizes", (32, 64.0)),
        ("model.pool.sampling_ratio", 0),
        ("optim.lr", 0.0),
        ("optim.decay_at", ()),
        ("optim.lr_multipliers", ()),
        ("optim.decay_at", (1,)),
    ],
)
def test_what_is_odd_but_right_is_accepted(path, value):
    _detection.check(changed(path, value))


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (
            "faster_rcnn_fpn",
            112,
            "`data.mask_size` is 112, and `network` is 'faster_rcnn_fpn', which lear",
        ),
        (
            "mask_rcnn_fpn",
            0,
            "`data.mask_size` is 0, and `network` is 'mask_rcnn_fpn', ",
        ),
        ("mask_rcnn_fpn", 56, None),
        ("faster_rcnn", 0, None),
    ],
)
def test_masks_are_for_a_network_that_learns_them(network, size, message):
    config = _detection.get_config(network)
    config.data.mask_size = size
    if message is None:
        _detection.check(config)
    else:
        assert fault(config).startswith(message)


def test_two_fields_in_the_wrong_order():
    text = fault(changed("model.rpn.sampling.negative_iou", 0.9))
    assert "`model.rpn.sampling.negative_iou` is 0.9; expected at most `mo" in text


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("batchsize", "did you mean `batch_size`?"),
        ("lr", "did you mean `optim.lr`?"),
        ("optim.learning_rate", "its section has clip_norm, decay_at, "),
        ("data.max_box", "did you mean `data.max_boxes`?"),
        (
            "model.selection.max_detectons",
            "did you mean `model.selection.max_detections`?",
        ),
        ("mesh.data", "its section has model"),
        ("opt", "did you mean `optim`?"),
        ("model.\x1b[2J", r"no field `model.\x1b[2J`"),
        ("n" * 10**6, "its section has "),
    ],
)
def test_an_unknown_field_is_refused(path, hint):
    assert hint in fault(changed(path, 7))


def test_missing_fields_and_sections():
    config = _detection.get_config()
    del config.optim.lr, config.seed, config.mesh
    text = fault(config)
    assert "`optim.lr` is missing" in text and "`seed` is missing" in text
    assert "`mesh` is missing" in text


def test_many_faults_are_told_together_but_not_all():
    config = _detection.get_config()
    for number in range(20):
        config[f"wrong{number}"] = number
    assert fault(config).endswith("; and 15 more.")


def test_the_options_of_a_data_set_are_not_ours():
    config = _detection.get_config()
    config.data.options.anything = None
    _detection.check(config)


def start(*flags):
    return subprocess.Popen(
        [sys.executable, "-m", "train.main", *flags],
        cwd=launch.ROOT,
        env=launch.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_one_line(process, message):
    status, errors = launch.finish(process)
    assert status == 1, errors
    assert len(errors.splitlines()) == 1 and message in errors, errors


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "c.optim.learning_rate = 7",
            "error: there is no field `optim.learning_rate`",
        ),
        slow(
            "c.data.canvases = 64",
            "own.py, line 4: Could not override field 'canvases'",
        ),
        slow(
            "c.optim.lr = -1",
            "error: `optim.lr` is -1.0; expected a finite number of at",
        ),
        ("nothing", "own.py, line 4: name 'nothing' is not defined"),
        slow("return", "`get_config` returned NoneType; expected a ConfigDict"),
        slow("raise OSError('x')", "error: Configuration is not available"),
    ],
)
def test_a_configuration_of_ones_own_gets_one_line(line, message, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from train.configs import digits\n"
        "def get_config():\n"
        "    c = digits.get_config()\n"
        f"    {line}\n"
        "    return c\n"
    )
    assert_one_line(start(f"--config={path}"), message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.data.canvases=((64,64),)", "--config.data.canvases=((32,32),)"],
            "--config.data.canvases is given twice",
        ),
        slow(
            ["--config.model.rpn.anchor_sizes", "32"],
            "anchor_sizes is '32'; expected a tuple",
        ),
        slow(
            ["--config.optim.lr_multipliers=(('(',0.1),)"],
            "`optim.lr_multipliers` is (('(",
        ),
    ],
)
def test_flags_get_one_line(flags, message):
    assert_one_line(start("--config=train/configs/digits.py", *flags), message)
