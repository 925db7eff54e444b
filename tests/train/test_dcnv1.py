"""The first paper's rows: configurations, and what Table 4 counts."""

import functools

import jax
import pytest
from flax import nnx

from dcn_jax.modules import DeformRoIPoolByLevel
from train.configs import _detection, _segmentation, dcnv1
from train.optim import multiplier
from train.tables.first_paper import PRINTED
from train.tasks import TASKS

ROWS = [
    f"{table}/{system}/{row}"
    for table, systems in dcnv1.TABLES.items()
    for system, rows in systems.items()
    for row in rows
]


def build(arg, num_classes):
    config = dcnv1.get_config(arg)
    task = TASKS[config.task]
    return nnx.eval_shape(lambda: task.build(config, num_classes, nnx.Rngs(0)))


@functools.cache
def parameters(arg, num_classes):
    params = nnx.state(build(arg, num_classes), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_every_row_is_printed():
    assert set(PRINTED) == set(ROWS)
    for printed in PRINTED.values():
        assert len(printed.names) == len(printed.values)


@pytest.mark.parametrize("arg", ROWS)
def test_every_row_is_a_configuration(arg):
    config = dcnv1.get_config(arg)
    fields = _segmentation if config.task == "segmentation" else _detection
    fields.check(config)
    assert config.name == "dcnv1_" + arg.replace("/", "_")
    assert len(config.data.canvases) <= 6
    model = config.model
    assert model.backbone.depths == (3, 4, 23, 3) and not model.backbone.modulated
    pyramid = arg.startswith("released/fpn")
    assert model.backbone.output_stride == (32 if pyramid else 16)
    groups = 4 if arg.startswith("released/") and config.task == "detection" else 1
    assert model.backbone.offset_groups == groups


def test_rows_are_what_their_names_say():
    model = dcnv1.get_config("table1/rfcn/6").model
    assert model.backbone.deform_blocks == (0, 0, 3, 3) and not model.psroi.deformable
    assert model.sampling.hardest == 128 and model.sampling.samples == 400
    model = dcnv1.get_config("table3/faster/dilation6").model
    assert model.backbone.dilation == model.backbone.first_dilation == 6
    assert model.backbone.deform_blocks == (0, 0, 0, 0)
    assert model.pool_layer == "RoIPool" and not model.mimicking
    config = dcnv1.get_config("table3/faster/dpool")
    assert config.model.pool_layer == "DeformRoIPool"
    assert config.model.sampling.least_iou == 0.1
    assert multiplier("roi.pool.offset_fc.kernel", config.optim) == 0.01
    config = dcnv1.get_config("table3/rfcn/dconv_dpool")
    assert config.model.psroi.deformable and config.batch_size == 4
    assert config.optim.lr == 0.002 and config.epochs == 14
    assert multiplier("trunk.neck.reduction.kernel", config.optim) == 3
    branch = "trunk.backbone.layer4.0.conv2.offset_conv.bias"
    assert multiplier(branch, config.optim) == 1
    config = dcnv1.get_config("table5/rfcn/plain")
    assert config.data.name == "coco_instances" and config.batch_size == 8
    config = dcnv1.get_config("table1/deeplab_cityscapes/1")
    assert config.data.name == "cityscapes" and config.data.crop == (768, 1024)
    assert multiplier(branch, config.optim) == 2
    assert multiplier("head.score.bias", config.optim) == 2
    assert multiplier("head.score.kernel", config.optim) == 1


def test_the_pyramid_of_2017_has_a_layer_for_each_level():
    model = build("released/fpn_coco/deformable", 80)
    assert isinstance(model.roi.pool, DeformRoIPoolByLevel)
    assert [b.offset_fc3.kernel.shape for b in model.roi.pool.branches] == [
        (49 * 256, 98)
    ] * 4
    assert model.trunk.neck.p6.kernel.shape == (3, 3, 2048, 256)
    names = {
        ".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))
    }
    deformed = {name.split(".conv2")[0] for name in names if "offset_conv" in name}
    assert deformed == {
        "trunk.backbone.layer2.3",
        "trunk.backbone.layer3.22",
        *(f"trunk.backbone.layer4.{block}" for block in range(3)),
    }


# System -> a regular row and a deformable one, classes of VOC, what offsets add.
ADDED = {
    "deeplab_voc": (("table1", "0"), ("table1", "3"), 21, 248_886),
    "rpn": (("table1", "0"), ("table1", "3"), 20, 248_886),
    "faster": (("table1", "0"), ("table3", "dconv_dpool"), 20, 1_478_296),
    "rfcn": (("table1", "0"), ("table3", "dconv_dpool"), 20, 2_458_786),
}


# R-FCN's offsets hold those of the others' convolutions.
@pytest.mark.parametrize(
    "system",
    [
        pytest.param("deeplab_voc", marks=pytest.mark.slow),
        pytest.param("rpn", marks=pytest.mark.slow),
        pytest.param("faster", marks=pytest.mark.slow),
        "rfcn",
    ],
)
def test_parameters_that_offsets_add(system):
    *rows, num_classes, added = ADDED[system]
    regular, deformable = (
        parameters(f"{table}/{system}/{row}", num_classes) for table, row in rows
    )
    assert deformable - regular == added


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("", "TABLE/SYSTEM/ROW with a table of"),
        ("table2/rfcn/3", "TABLE/SYSTEM/ROW with a table of"),
        ("table1", "table1/SYSTEM/ROW with a system of"),
        ("table5/deeplab_voc/plain", "table5/SYSTEM/ROW with a system of"),
        ("table1/rfcn", "table1/rfcn/ with one of ('0', '1', '2', '3', '6')"),
        ("table1/rfcn/4", "table1/rfcn/ with one of"),
        ("table3/rpn/dpool", "table3/rpn/ with one of"),
        ("table3/faster/dconv/x", "table3/faster/ with one of"),
    ],
)
def test_other_rows_are_refused_in_one_line(arg, expected):
    with pytest.raises(ValueError) as raised:
        dcnv1.get_config(arg)
    assert str(raised.value).startswith(f"dcnv1.py:{arg}: expected {expected}")
    assert "\n" not in str(raised.value)
