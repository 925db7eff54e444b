"""The paper's tables: what rows add, and which printed figures that agrees with."""

import functools
import json

import pytest

from train.configs import _detection, dcnv2
from train.tables import columns as tables
from train.tables.__main__ import recorded, recorded_first
from train.tables.paper import PRINTED
from train.tasks import TASKS

ADDED = {
    # Layers -> parameters; multiply-adds of Faster R-CNN at 1000 and 800, Mask R-CNN.
    "roi_pool": (0, 0, 0, 0, 0),
    "dconv_c5": (248_886, 1_646_023_680, 1_045_094_400, 422_019_072, 261_273_600),
    "dconv_c4_c5": (
        *(497_826, 3_292_047_360, 2_090_188_800, 2_068_042_752, 1_306_368_000),
    ),
    "dconv_c3_c5": (
        *(580_842, 5_458_959_360, 3_475_353_600, 4_234_954_752, 2_691_532_800),
    ),
    "dcnv1": (1_478_296, 2_875_335_680, 2_274_406_400, 1_651_331_072, 1_490_585_600),
    "dconv_c3_c5_dpool": (
        *(1_810_252, 6_688_271_360, 4_704_665_600, 5_464_266_752, 3_920_844_800),
    ),
    "dcnv2": (
        *(14_917_618, 22_232_599_040, 19_257_190_400, 20_396_592_128, 18_081_459_200),
    ),
}  # fmt: skip
COLUMNS = {
    ("table1", "faster"): 1,
    ("table2", "faster"): 2,
    ("table1", "mask"): 3,
    ("table2", "mask"): 4,
}
# One column takes as long as a test of the suite may.
CASES = [
    case if number == 0 else pytest.param(*case, marks=pytest.mark.slow)
    for number, case in enumerate(COLUMNS)
]
# What no baseline agrees with.
MISPRINTS = {
    ("table1", "faster", "flops"): {"regular"},
    ("table1", "mask", "flops"): {"dcnv2"},
}


@functools.cache
def counted(table, net):
    """Of networks without masks."""
    network = "faster_rcnn" if net == "faster" else "faster_rcnn_fpn"
    return tables.costs(table, network, TASKS["detection"])


@pytest.mark.parametrize(("table", "net"), CASES)
def test_what_rows_add_is_exact(table, net):
    found = counted(table, net)
    regular = found["regular"]
    for layers, expected in ADDED.items():
        assert found[layers].params - regular.params == expected[0]
        added = found[layers].flops - regular.flops
        assert added == expected[COLUMNS[table, net]], layers


@pytest.mark.parametrize(("table", "net"), CASES)
def test_printed_figures_agree_but_for_two_misprints(table, net):
    for name, column in tables.columns(table, net, counted(table, net)).items():
        assert len(column.agrees) == 7
        wrong = {row for row, agrees in column.agrees.items() if not agrees}
        assert wrong == MISPRINTS.get((table, net, name), set())
        for row, agrees in column.agrees.items():
            printed = getattr(PRINTED[f"{table}/{net}/{row}"], name)
            assert agrees == (f"{column.implied[row]:.1f}" == f"{printed:.1f}")


@pytest.mark.parametrize("arg", PRINTED)
def test_every_printed_row_is_a_configuration(arg):
    config = dcnv2.get_config(arg)
    _detection.check(config)
    assert config.name == "dcnv2_" + arg.replace("/", "_")


def test_rows_are_what_their_names_say():
    config = dcnv2.get_config("table4/mask/dcnv2/resnext101_32x4d")
    model = config.model
    assert config.network == "mask_rcnn_fpn" and model.mimicking
    assert model.backbone.depths == (3, 4, 23, 3) and model.backbone.groups == 32
    assert model.pool.modulated and model.mask_pool.modulated
    assert (model.pool.output_size, model.mask_pool.output_size) == (7, 14)
    config = dcnv2.get_config("table3/faster/dcnv2/bg")
    assert config.model.mimicking and config.model.mimic.regions == "bg"
    config = dcnv2.get_config("table2/faster/roi_pool")
    assert config.model.pool_layer == "RoIPool" and not config.model.mimicking
    assert config.data.eval_short_side == 800


@pytest.mark.parametrize(
    "arg",
    [
        "",
        "table1",
        "table1/faster",
        "table5/faster/dcnv2",
        "table1/mask/dcnv3",
        "table1/mask/dcnv2/x",
        "table1/mask/dcnv2//",
        "table3/faster/dcnv2",
        "table3/faster/dcnv2/resnet50",
    ],
)
def test_other_rows_are_refused(arg):
    with pytest.raises(ValueError, match="expected TABLE/NET/LAYERS"):
        dcnv2.get_config(arg)


def test_results_are_shown_where_a_run_has_them(tmp_path):
    arg = "table1/mask/dcnv2"
    assert recorded(tmp_path, arg) == "-"
    folder = tmp_path / "dcnv2_table1_mask_dcnv2"
    folder.mkdir()
    found = {"step": 9, "bbox": {"AP": 0.4314}, "segm": {"AP": None}}
    (folder / "evaluation.json").write_text(json.dumps(found))
    assert recorded(tmp_path, arg) == "43.1 -"


def test_results_of_the_first_papers_rows_are_shown_too(tmp_path):
    found = {
        "table1/deeplab_voc/3": ({"pixels": {"mIoU": 0.752}}, "75.2"),
        "table3/rfcn/dpool": (
            {"voc": {"mAP50_11point": 0.812, "mAP70_11point": 0.65}},
            "81.2 65.0",
        ),
        "table5/rpn/plain": ({"bbox": {"AP": 0.232, "AP50": None}}, "23.2 -"),
        "table1/faster/0": ({"bbox": {"AP": 0.3}}, "-"),
    }
    for arg, (groups, shown) in found.items():
        assert recorded_first(tmp_path, arg) == "-"
        folder = tmp_path / f"dcnv1_{arg.replace('/', '_')}"
        folder.mkdir()
        (folder / "evaluation.json").write_text(json.dumps({"step": 9} | groups))
        assert recorded_first(tmp_path, arg) == shown
