"""The tables of the DCNv2 paper as printed (Zhu et al. 2019, arXiv:1811.11168)."""

from typing import NamedTuple


class Printed(NamedTuple):
    """A row for one network; AP of val2017, in Table 4 of test-dev.

    Attributes:
      box: Box AP.
      mask: Mask AP, of Mask R-CNN.
      params: Parameters in units of 2^20, where printed.
      flops: Multiply-adds in units of 2^30, where printed.
    """

    box: float
    mask: float | None = None
    params: float | None = None
    flops: float | None = None


# Argument of train/configs/dcnv2.py -> what the paper prints.
PRINTED: dict[str, Printed] = {
    # Table 1, shorter side 1000.
    "table1/faster/roi_pool": Printed(32.1, None, 51.3, 326.7),
    "table1/faster/regular": Printed(34.7, None, 51.3, 326.7),
    "table1/faster/dcnv1": Printed(38.0, None, 52.7, 328.2),
    "table1/faster/dconv_c5": Printed(37.4, None, 51.5, 327.1),
    "table1/faster/dconv_c4_c5": Printed(40.0, None, 51.7, 328.6),
    "table1/faster/dconv_c3_c5": Printed(40.4, None, 51.8, 330.6),
    "table1/faster/dconv_c3_c5_dpool": Printed(41.0, None, 53.0, 331.8),
    "table1/faster/dcnv2": Printed(41.7, None, 65.5, 346.2),
    "table1/mask/regular": Printed(36.6, 32.2, 39.5, 447.5),
    "table1/mask/dcnv1": Printed(40.4, 35.3, 40.9, 449.0),
    "table1/mask/dconv_c5": Printed(40.2, 35.1, 39.8, 447.8),
    "table1/mask/dconv_c4_c5": Printed(41.8, 36.8, 40.0, 449.4),
    "table1/mask/dconv_c3_c5": Printed(42.2, 37.0, 40.1, 451.4),
    "table1/mask/dconv_c3_c5_dpool": Printed(42.4, 37.0, 41.3, 452.5),
    "table1/mask/dcnv2": Printed(43.1, 37.3, 53.8, 461.1),
    # Table 2, shorter side 800.
    "table2/faster/roi_pool": Printed(32.8, None, 51.3, 196.8),
    "table2/faster/regular": Printed(35.6, None, 51.3, 196.8),
    "table2/faster/dcnv1": Printed(38.2, None, 52.7, 198.9),
    "table2/faster/dconv_c5": Printed(37.6, None, 51.5, 197.7),
    "table2/faster/dconv_c4_c5": Printed(39.2, None, 51.7, 198.7),
    "table2/faster/dconv_c3_c5": Printed(39.5, None, 51.8, 200.0),
    "table2/faster/dconv_c3_c5_dpool": Printed(40.0, None, 53.0, 201.2),
    "table2/faster/dcnv2": Printed(40.8, None, 65.5, 214.7),
    "table2/mask/regular": Printed(37.8, 33.4, 39.5, 303.5),
    "table2/mask/dcnv1": Printed(40.3, 35.0, 40.9, 304.9),
    "table2/mask/dconv_c5": Printed(39.9, 34.9, 39.8, 303.7),
    "table2/mask/dconv_c4_c5": Printed(41.2, 36.1, 40.0, 304.7),
    "table2/mask/dconv_c3_c5": Printed(41.5, 36.4, 40.1, 306.0),
    "table2/mask/dconv_c3_c5_dpool": Printed(41.8, 36.4, 41.3, 307.2),
    "table2/mask/dcnv2": Printed(42.7, 37.0, 53.8, 320.3),
    # Table 3, feature mimicking.
    "table3/faster/dcnv2/none": Printed(41.7),
    "table3/faster/dcnv2/fg_bg": Printed(42.1),
    "table3/faster/dcnv2/bg": Printed(41.7),
    "table3/faster/dcnv2/fg": Printed(43.1),
    "table3/faster/regular/none": Printed(34.7),
    "table3/faster/regular/fg": Printed(35.0),
    "table3/mask/dcnv2/none": Printed(43.1, 37.3),
    "table3/mask/dcnv2/fg_bg": Printed(43.4, 37.6),
    "table3/mask/dcnv2/bg": Printed(43.3, 37.5),
    "table3/mask/dcnv2/fg": Printed(44.3, 38.3),
    "table3/mask/regular/none": Printed(36.6, 32.2),
    "table3/mask/regular/fg": Printed(36.8, 32.3),
    # Table 4, test-dev.
    "table4/faster/regular/resnet50": Printed(35.1),
    "table4/faster/dcnv1/resnet50": Printed(38.4),
    "table4/faster/dcnv2/resnet50": Printed(43.3),
    "table4/faster/regular/resnet101": Printed(39.2),
    "table4/faster/dcnv1/resnet101": Printed(41.4),
    "table4/faster/dcnv2/resnet101": Printed(44.8),
    "table4/faster/regular/resnext101": Printed(40.1),
    "table4/faster/dcnv1/resnext101": Printed(41.7),
    "table4/faster/dcnv2/resnext101": Printed(45.3),
    "table4/mask/regular/resnet50": Printed(37.0, 32.4),
    "table4/mask/dcnv1/resnet50": Printed(40.7, 35.5),
    "table4/mask/dcnv2/resnet50": Printed(44.5, 38.4),
    "table4/mask/regular/resnet101": Printed(40.9, 35.3),
    "table4/mask/dcnv1/resnet101": Printed(42.9, 37.1),
    "table4/mask/dcnv2/resnet101": Printed(45.8, 39.7),
    "table4/mask/regular/resnext101": Printed(41.7, 36.2),
    "table4/mask/dcnv1/resnext101": Printed(43.4, 37.7),
    "table4/mask/dcnv2/resnext101": Printed(46.7, 40.5),
}
