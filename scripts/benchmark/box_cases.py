"""Cases of RoI pooling and of non-maximum suppression.

Boxes are 16 to 315 pixels wide and high, anywhere on the image.
"""

import functools

import numpy as np

import xla_ops
from scripts.benchmark.case import Candidate, Case, Peer, Ratio, Table
from scripts.benchmark.conv_cases import nchw
from scripts.benchmark.layers import CANVAS, CONV4

_SCALE = 1 / 16
# What our operators take by themselves.
_SAMPLES = {"sampling_ratio": 2}


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    size = rng.uniform(16, 315, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array(CANVAS[::-1]) - size)
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def _bins_first(pooled: np.ndarray) -> np.ndarray:
    """From [1, B, h, w, C] to torchvision's [B, C, h, w]."""
    return nchw(pooled[0])


def _pool(
    operator: str,
    channels: int,
    *,
    offset: tuple[int, ...] | None = None,
    mask: tuple[int, ...] | None = None,
    peer: dict | None = None,
    reference: bool = True,
    **settings,
) -> dict[str, Candidate]:
    """512 RoIs on a map 50x76, 7x7 bins.

    Args:
      operator: Name in `xla_ops`.
      channels: Of the map.
      offset: Shape of the offset behind [N, B], for operators that have one.
      mask: Shape of the mask alike.
      peer: Settings of torchvision's operator of the same name; None: it has none.
      reference: False where the plain form takes too long.
      settings: Of ours.
    """
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, *CONV4[1:], channels)).astype(np.float32)
    rois = _boxes(rng, 512)
    arguments = [features]
    if offset is not None:
        arguments.append(rng.normal(size=(1, 512, *offset)).astype(np.float32))
    if mask is not None:
        arguments.append(rng.uniform(size=(1, 512, *mask)).astype(np.float32))
    operate = getattr(xla_ops, operator)

    def function(implementation):
        return lambda features, *rest: operate(
            features,
            rois[None],
            *rest,
            output_size=(7, 7),
            spatial_scale=_SCALE,
            implementation=implementation,
            **settings,
        )

    theirs = None
    if peer is not None:
        with_image = np.concatenate([np.zeros((512, 1), np.float32), rois], -1)
        theirs = Peer(
            "torchvision",
            operator,
            (nchw,),
            _bins_first,
            constants=(with_image,),
            settings={"output_size": 7, "spatial_scale": _SCALE, **peer},
        )
    given = tuple(arguments)
    candidates = {"kernel": Candidate(function(None), given, peer=theirs)}
    if reference:
        candidates["reference"] = Candidate(function("reference"), given, slow=True)
    return candidates


def _nms(classes: int) -> dict[str, Candidate]:
    """6,000 boxes of distinct scores, of which about 4,400 stay in one class."""
    rng = np.random.default_rng(0)
    boxes = _boxes(rng, 6000)
    scores = rng.permutation(6000).astype(np.float32) / 6000
    arguments, operator = (boxes, scores), "nms"
    if classes > 1:
        class_ids = rng.integers(0, classes, 6000).astype(np.int32)
        arguments, operator = (boxes, scores, class_ids), "batched_nms"

    def candidate(implementation, **settings):
        def select(boxes, scores, class_ids=None):
            return xla_ops.nms(
                boxes,
                scores,
                class_ids=class_ids,
                iou_threshold=0.7,
                max_outputs=6000,
                implementation=implementation,
            )

        return Candidate(select, arguments, differentiable=False, **settings)

    def kept(found):
        indices, valid = found
        return indices[valid]

    peer = Peer(
        "torchvision",
        operator,
        (np.asarray,) * len(arguments),
        kept,
        settings={"iou_threshold": 0.7},
    )
    return {
        "kernel": candidate(None, peer=peer),
        "reference": candidate("reference", slow=True),
    }


def _pool_case(title: str, operator: str, channels: int, **settings) -> Case:
    return Case(title, functools.partial(_pool, operator, channels, **settings))


BOX_TABLE = Table(
    "RoI pooling and NMS",
    "512 RoIs, 7x7 bins, on a map 50x76; NMS of 6,000 boxes at a threshold of 0.7.",
    ("kernel", "reference", "torchvision"),
    (
        Ratio("torchvision / kernel", "torchvision", "kernel"),
        Ratio("reference / kernel", "reference", "kernel"),
    ),
    (
        _pool_case(
            "roi_align 256ch", "roi_align", 256, peer={**_SAMPLES, "aligned": True}
        ),
        _pool_case("roi_pool 256ch", "roi_pool", 256, peer={}, reference=False),
        _pool_case(
            "deform_roi_pool 256ch",
            "deform_roi_pool",
            256,
            offset=(7, 7, 2),
            mask=(7, 7),
        ),
        _pool_case("ps_roi_align 1029ch", "ps_roi_align", 1029, peer=_SAMPLES),
        # torchvision's ps_roi_pool is another operator.
        _pool_case("ps_roi_pool 1029ch", "ps_roi_pool", 1029),
        _pool_case(
            "deform_ps_roi_pool 1029ch",
            "deform_ps_roi_pool",
            1029,
            offset=(7, 7, 1, 2),
            mask=(7, 7),
            group_size=7,
        ),
        Case("nms, one class", functools.partial(_nms, 1)),
        Case("nms, 80 classes", functools.partial(_nms, 80)),
    ),
)
