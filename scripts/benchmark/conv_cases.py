"""Cases of `deform_conv2d`, of `spatial_conv` and of the forms of `fast_forms`.

Offsets are normal with a standard deviation of 2 pixels; torch's layouts are
[N, C, H, W], [N, G*R*S*2, P, Q] and [K, C, R, S].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.modules.fast_forms import max_pool_3x3, pointwise_conv
from dcn_jax.modules.spatial_conv import spatial_conv
from scripts.benchmark.case import FMA_PEAK, Candidate, Case, Peer, Ratio, Table
from scripts.benchmark.layers import CONV3, CONV4, CONV5, SHAPES
from xla_ops import deform_conv2d


def nchw(x: np.ndarray) -> np.ndarray:
    """From [N, H, W, C]."""
    return x.transpose(0, 3, 1, 2)


def _per_sample(x: np.ndarray) -> np.ndarray:
    """Offsets or masks, from [N, P, Q, ...] to [N, ..., P, Q] with one axis for all."""
    return nchw(x.reshape(*x.shape[:3], -1))


def _oihw(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(3, 2, 0, 1)


def deform_arguments(
    images: int,
    channels: int,
    height: int,
    width: int,
    groups: int = 1,
    offset_groups: int = 1,
) -> tuple[np.ndarray, ...]:
    """x, offset, kernel and mask of a 3x3 layer, as many channels out as in."""
    rng = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return rng.normal(0, scale, shape).astype(np.float32)

    place = (images, height, width, offset_groups, 9)
    x = normal(images, height, width, channels)
    offset = normal(*place, 2, scale=2.0)
    kernel = normal(3, 3, channels // groups, channels, scale=0.05)
    mask = 1 / (1 + np.exp(-normal(*place)))
    return x, offset, kernel, mask


def deform_candidate(arguments: tuple[np.ndarray, ...]) -> Candidate:
    """`deform_conv2d` of float32 arguments, with torchvision's as its peer."""
    layouts = (nchw, _per_sample, _oihw, _per_sample)
    settings = {"padding": 1}
    peer = Peer("torchvision", "deform_conv2d", layouts, nchw, settings=settings)
    return Candidate(deform_conv2d, arguments, peer=peer)


def conv_candidate(x: np.ndarray, kernel: np.ndarray, groups: int = 1) -> Candidate:
    """The ordinary convolution of the same shape."""
    function = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    settings = {"padding": 1, "groups": groups}
    peer = Peer("torch conv2d", "conv2d", (nchw, _oihw), nchw, settings=settings)
    # XLA's gradient of a convolution in groups takes seconds.
    return Candidate(function, (x, kernel), slow=groups > 1, peer=peer)


def _against_all(channels: int, height: int, width: int) -> dict[str, Candidate]:
    arguments = deform_arguments(1, channels, height, width)
    x, _, kernel, _ = arguments
    reference = functools.partial(deform_conv2d, implementation="reference")
    return {
        "kernel": deform_candidate(arguments),
        "reference": Candidate(reference, arguments, slow=True),
        "lax.conv": conv_candidate(x, kernel),
    }


def _in_groups(
    channels: int, height: int, width: int, groups: int = 1, offset_groups: int = 1
) -> dict[str, Candidate]:
    arguments = deform_arguments(1, channels, height, width, groups, offset_groups)
    x, _, kernel, _ = arguments
    grouped = functools.partial(deform_conv2d, feature_group_count=groups)
    return {
        # Groups of channels are to equal torch's ordinary ones.
        "kernel": Candidate(grouped, arguments)
        if groups > 1
        else deform_candidate(arguments),
        "lax.conv": conv_candidate(x, kernel, groups),
    }


def _against_bfloat16(channels: int, height: int, width: int) -> dict[str, Candidate]:
    arguments = deform_arguments(1, channels, height, width)
    x, offset, kernel, mask = arguments
    half = (x.astype(jnp.bfloat16), offset, kernel.astype(jnp.bfloat16), mask)
    return {
        "float32": Candidate(deform_conv2d, arguments),
        "bfloat16": Candidate(deform_conv2d, half),
    }


def _against_even(odd: int, even: int, height: int, width: int) -> dict[str, Candidate]:
    return {
        "odd": Candidate(deform_conv2d, deform_arguments(1, odd, height, width)),
        "even": Candidate(deform_conv2d, deform_arguments(1, even, height, width)),
    }


def _max_pool() -> dict[str, Candidate]:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (8, 96, 96, 32)).astype(np.float32)

    def windowed(x):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nnx.max_pool(padded, (3, 3), strides=(2, 2))

    return {"ours": Candidate(max_pool_3x3, (x,)), "usual": Candidate(windowed, (x,))}


def _pointwise() -> dict[str, Candidate]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 48, 48, 32)).astype(np.float32)
    kernel = rng.normal(size=(1, 1, 32, 128)).astype(np.float32)
    ours = functools.partial(pointwise_conv, strides=(1, 1), padding=0)
    return {
        "ours": Candidate(ours, (x, kernel)),
        "usual": conv_candidate(x, kernel)._replace(peer=None),
    }


def _spatial(n: int, h: int, w: int, c: int, k: int) -> dict[str, Candidate]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, h, w, c)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, c, k)).astype(np.float32)
    form = dict(
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        rhs_dilation=(1, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    usual = functools.partial(jax.lax.conv_general_dilated, **form)
    form["strides"] = form.pop("window_strides")
    ours = functools.partial(spatial_conv, **form)
    return {
        "ours": Candidate(ours, (x, kernel)),
        "usual": Candidate(usual, (x, kernel)),
    }


def _title(channels: int, height: int, width: int) -> str:
    return f"{channels}ch {height}x{width}"


def _flops(channels: int, height: int, width: int, groups: int = 1) -> float:
    return 2 * height * width * 9 * channels * channels / groups


_CONV_TIMES = ("kernel", "reference", "lax.conv", "torchvision", "torch conv2d")
_CONV_RATIOS = (
    Ratio("torchvision / kernel", "torchvision", "kernel"),
    Ratio("kernel / lax.conv", "kernel", "lax.conv"),
    Ratio("kernel / torch conv2d", "kernel", "torch conv2d"),
    Ratio("FMA peak", FMA_PEAK, "kernel", percent=True),
)

CONV_TABLE = Table(
    "deform_conv2d",
    "float32, one offset group, with a mask.",
    _CONV_TIMES,
    _CONV_RATIOS,
    tuple(
        Case(_title(*shape), functools.partial(_against_all, *shape), _flops(*shape))
        for shape in SHAPES
    ),
)

GROUP_TABLE = Table(
    "deform_conv2d in groups",
    "32 groups of channels as in a ResNeXt, a group for each channel, four offset "
    "groups, or offset groups of eight channels as in the restoration of videos.",
    _CONV_TIMES,
    _CONV_RATIOS,
    tuple(
        Case(
            f"{_title(*shape)}, {what}",
            functools.partial(_in_groups, *shape, groups, offset_groups),
            _flops(*shape, groups),
        )
        for shape, what, groups, offset_groups in (
            (CONV3, "32 groups", 32, 1),
            (CONV4, "32 groups", 32, 1),
            (CONV3, "depthwise", 128, 1),
            (CONV4, "depthwise", 256, 1),
            (CONV3, "4 offset groups", 1, 4),
            (CONV4, "4 offset groups", 1, 4),
            ((64, 180, 320), "8 offset groups", 1, 8),
            ((64, 270, 480), "8 offset groups", 1, 8),
            ((128, 180, 320), "16 offset groups", 1, 16),
        )
    ),
)

BFLOAT16_TABLE = Table(
    "deform_conv2d in bfloat16",
    "Offsets and mask float32.",
    ("float32", "bfloat16"),
    (Ratio("bfloat16 / float32", "bfloat16", "float32"),),
    tuple(
        Case(_title(*shape), functools.partial(_against_bfloat16, *shape))
        for shape in SHAPES
    ),
)

ODD_TABLE = Table(
    "deform_conv2d of odd channel counts",
    "Channels that are no multiple of a vector's width beside ones that are; the ratio "
    "is that of the times per channel.",
    ("odd", "even"),
    (Ratio("odd / even, per channel", "odd", "even"),),
    tuple(
        Case(
            f"{odd}ch beside {even}ch, {height}x{width}",
            functools.partial(_against_even, odd, even, height, width),
            factor=even / odd,
        )
        for odd, even, height, width in (
            (125, *CONV3),
            (83, 96, *CONV3[1:]),
            (250, *CONV4),
            (509, *CONV5),
        )
    ),
)

FORM_TABLE = Table(
    "Forms of layers",
    "`dcn_jax.modules.fast_forms` and `.spatial_conv` beside `nnx.max_pool` and "
    "`lax.conv`.",
    ("ours", "usual"),
    (Ratio("usual / ours", "usual", "ours"),),
    (
        Case("max_pool_3x3 8x96x96x32", _max_pool),
        Case("pointwise_conv 8x48x48 32->128", _pointwise),
        *(
            Case(
                f"spatial_conv {n}x{h}x{w} {c}->{k}",
                functools.partial(_spatial, n, h, w, c, k),
            )
            for n, h, w, c, k in (
                (1, 200, 304, 64, 64),
                (1, 100, 152, 128, 128),
                (1, 50, 76, 1024, 512),
                (64, 14, 14, 256, 256),
            )
        ),
    ),
)
