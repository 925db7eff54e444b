"""The tables of the DCNv1 paper as printed (Dai et al. 2017, arXiv:1703.06211)."""

from typing import NamedTuple

# What the figures of a row are, by the data of its system.
_SEGMENTATION = ("mIoU",)
_VOC = ("mAP50", "mAP70")
_COCO = ("AP", "AP50")


class Printed(NamedTuple):
    """Figures of a row, in percent.

    Attributes:
      names: What each is.
      values: Of VOC 2007 test, VOC 2012 or Cityscapes val; COCO's are of test-dev, but
        the pyramid's, which are of 5000 images of val2014.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]


_SYSTEMS = ("deeplab_voc", "deeplab_cityscapes", "rpn", "faster", "rfcn")
# One line a row; a column for each figure, in the order of the systems.
_TABLE1 = {
    "0": (69.7, 70.4, 68.0, 44.9, 78.1, 62.1, 80.0, 61.8),
    "1": (73.9, 73.5, 73.5, 54.4, 78.6, 63.8, 80.6, 63.0),
    "2": (74.8, 74.4, 74.3, 56.3, 78.5, 63.3, 81.0, 63.8),
    "3": (75.2, 75.2, 74.5, 57.2, 78.6, 63.3, 81.4, 64.7),
    "6": (74.8, 75.1, 74.6, 57.7, 78.7, 64.0, 81.5, 65.4),
}
_TABLE3 = {
    "dilation2": _TABLE1["0"],
    "dilation4": (73.1, 71.9, 72.8, 53.1, 78.6, 63.1, 80.5, 63.0),
    "dilation6": (73.6, 72.7, 73.6, 55.2, 78.5, 62.3, 80.2, 63.5),
    "dilation8": (73.2, 72.4, 73.2, 55.1, 77.8, 61.8, 80.3, 63.2),
    "dconv": (75.3, 75.2, 74.5, 57.2, 78.6, 63.3, 81.4, 64.7),
}


def _columns(table: str, rows: dict[str, tuple[float, ...]]) -> dict[str, Printed]:
    found = {}
    for row, values in rows.items():
        left = list(values)
        for system in _SYSTEMS:
            names = _SEGMENTATION if system.startswith("deeplab") else _VOC
            own = tuple(left.pop(0) for _ in names)
            found[f"{table}/{system}/{row}"] = Printed(names, own)
    return found


# Argument of train/configs/dcnv1.py -> what is printed.
PRINTED: dict[str, Printed] = {
    **_columns("table1", _TABLE1),
    **_columns("table3", _TABLE3),
    "table3/faster/dpool": Printed(_VOC, (78.3, 66.6)),
    "table3/faster/dconv_dpool": Printed(_VOC, (79.3, 66.9)),
    "table3/rfcn/dpool": Printed(_VOC, (81.2, 65.0)),
    "table3/rfcn/dconv_dpool": Printed(_VOC, (82.6, 68.5)),
    "table5/rpn/plain": Printed(_COCO, (23.2, 42.6)),
    "table5/rpn/deformable": Printed(_COCO, (25.8, 45.9)),
    "table5/faster/plain": Printed(_COCO, (29.4, 48.0)),
    "table5/faster/deformable": Printed(_COCO, (33.1, 50.3)),
    "table5/rfcn/plain": Printed(_COCO, (30.8, 52.6)),
    "table5/rfcn/deformable": Printed(_COCO, (34.5, 55.0)),
    # Of the released code's opening page.
    "released/rfcn_voc/plain": Printed(_VOC, (79.6, 63.1)),
    "released/rfcn_voc/deformable": Printed(_VOC, (82.3, 67.8)),
    "released/rfcn_coco/plain": Printed(_COCO[:1], (32.1,)),
    "released/rfcn_coco/deformable": Printed(_COCO[:1], (35.7,)),
    "released/faster_coco/plain": Printed(_COCO[:1], (30.3,)),
    "released/faster_coco/deformable": Printed(_COCO[:1], (35.0,)),
    "released/fpn_coco/plain": Printed(_COCO[:1], (37.8,)),
    "released/fpn_coco/deformable": Printed(_COCO[:1], (41.2,)),
    "released/deeplab_voc/plain": Printed(_SEGMENTATION, (70.7,)),
    "released/deeplab_voc/deformable": Printed(_SEGMENTATION, (75.9,)),
    "released/deeplab_cityscapes/plain": Printed(_SEGMENTATION, (70.3,)),
    "released/deeplab_cityscapes/deformable": Printed(_SEGMENTATION, (75.2,)),
}


class Parameters(NamedTuple):
    """A row of Table 4.

    Attributes:
      classes: Of the data that it is counted on, as a task counts them.
      printed: Millions of parameters, regular and deformable.
      rows: Arguments of train/configs/dcnv1.py that are these two networks.
    """

    classes: int
    printed: tuple[float, float]
    rows: tuple[str, str]


# System -> its row. The deformable one has res5 and, with RoIs, their pooling. That of
# R-FCN adds what it has on VOC; which data the others are counted on makes no
# difference to what they add.
TABLE4 = {
    "DeepLab": Parameters(
        19, (46.0, 46.1), ("table1/deeplab_cityscapes/0", "table1/deeplab_cityscapes/3")
    ),
    "class-aware RPN": Parameters(20, (46.0, 46.1), ("table1/rpn/0", "table1/rpn/3")),
    "Faster R-CNN": Parameters(
        20, (58.3, 59.9), ("table1/faster/0", "table3/faster/dconv_dpool")
    ),
    "R-FCN": Parameters(20, (47.1, 49.5), ("table1/rfcn/0", "table3/rfcn/dconv_dpool")),
}
