"""R-FCN's head against loops written from the papers, and what it refuses."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from dcn_jax.detection.mimic import Mimic
from dcn_jax.detection.psroi_head import PSRoIHead
from dcn_jax.modules.psroi_pool import PSRoIPool
from dcn_jax.necks import Levels
from dcn_jax.networks import r_fcn
from dcn_jax.trunk import Features

BINS, CLASSES, STRIDE, SAMPLES, GAMMA = 3, 2, 8, 2, 0.1
HEIGHT, WIDTH = 7, 9
# In the map, at its corner, small, and far over its border.
ROIS = np.array(
    [[[9.3, 4.2, 50.7, 40.1], [0, 0, 71, 55], [20, 30, 22, 31], [40, -20, 130, 90.5]]]
)


def rounded(roi):
    """x1 y1 x2 y2 on the map: whole pixels of the image, the last one included."""
    x1, y1, x2, y2 = (math.floor(abs(v) + 0.5) * (1 if v >= 0 else -1) for v in roi)
    return x1 / STRIDE, y1 / STRIDE, (x2 + 1) / STRIDE, (y2 + 1) / STRIDE


def channel(maps, d, i, j):
    """The map of channel d for bin (i, j)."""
    return maps[:, :, (d * BINS + i) * BINS + j]


def mean_of_pixels(maps, roi, depth):
    """R-FCN: the mean of the pixels of each bin, [BINS, BINS, depth]."""
    x1, y1, x2, y2 = rounded(roi)
    w, h = max(x2 - x1, 0.1) / BINS, max(y2 - y1, 0.1) / BINS
    out = np.zeros((BINS, BINS, depth))
    for i, j, d in np.ndindex(out.shape):
        values = [
            channel(maps, d, i, j)[y, x]
            for y in range(HEIGHT)
            for x in range(WIDTH)
            if math.floor(y1 + i * h) <= y < math.ceil(y1 + (i + 1) * h)
            and math.floor(x1 + j * w) <= x < math.ceil(x1 + (j + 1) * w)
        ]
        out[i, j, d] = np.mean(values) if values else 0
    return out


def bilinear(values, y, x):
    """The sum over all pixels of max(0, 1 - |dy|) max(0, 1 - |dx|) of each."""
    rows = np.maximum(0, 1 - abs(np.arange(HEIGHT) - y))
    columns = np.maximum(0, 1 - abs(np.arange(WIDTH) - x))
    return rows @ values @ columns


def mean_of_samples(maps, roi, depth, offset=None):
    """Deformable: samples of each bin, moved by offset [BINS, BINS, K, (dy, dx)]."""
    x1, y1, x2, y2 = (v - 0.5 for v in rounded(roi))
    width, height = max(x2 - x1, 0.1), max(y2 - y1, 0.1)
    out = np.zeros((BINS, BINS, depth))
    for i, j, d in np.ndindex(out.shape):
        dy = dx = 0.0
        if offset is not None:
            dy, dx = offset[i, j, d * offset.shape[2] // depth]
        values = []
        for s, t in np.ndindex(SAMPLES, SAMPLES):
            y = y1 + (i + s / SAMPLES) * height / BINS + GAMMA * dy * height
            x = x1 + (j + t / SAMPLES) * width / BINS + GAMMA * dx * width
            if -0.5 <= y <= HEIGHT - 0.5 and -0.5 <= x <= WIDTH - 0.5:
                y, x = np.clip(y, 0, HEIGHT - 1), np.clip(x, 0, WIDTH - 1)
                values.append(bilinear(channel(maps, d, i, j), y, x))
        out[i, j, d] = np.mean(values) if values else 0
    return out


def random_head(**options):
    make = dict(strides=(STRIDE,), bins=BINS, samples_per_part=SAMPLES, **options)
    graph, state = nnx.split(
        nnx.eval_shape(
            lambda: PSRoIHead(
                5, CLASSES, **make, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
            )
        )
    )
    rng = np.random.default_rng(3)
    leaves = [
        (path, variable.replace(jnp.asarray(rng.normal(size=variable.shape))))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def features(x, sizes=None):
    maps = (jnp.asarray(x),)
    images = jnp.zeros((1, STRIDE * x.shape[1], STRIDE * x.shape[2], 3), maps[0].dtype)
    return Features(images, sizes, Levels(maps, maps))


def vote(pool, x, roi, depth):
    """What a pooling says of a RoI: the mean over its bins."""
    made = x @ np.asarray(pool.maps.kernel[...])[0, 0] + np.asarray(pool.maps.bias[...])
    if not pool.deformable:
        return mean_of_pixels(made, roi, depth).mean((0, 1))
    branch = pool.offset_conv
    offsets = x @ np.asarray(branch.kernel[...])[0, 0] + np.asarray(branch.bias[...])
    classes = pool.offset_classes
    offset = mean_of_samples(offsets, roi, 2 * classes)
    offset = offset.reshape(BINS, BINS, classes, 2)
    return mean_of_samples(made, roi, depth, offset).mean((0, 1))


@pytest.mark.parametrize("background_boxes", [False, True])
@pytest.mark.parametrize("deformable", [False, True])
def test_it_is_what_the_papers_say(x64, deformable, background_boxes):
    head = random_head(deformable=deformable, background_boxes=background_boxes)
    x = np.random.default_rng(5).normal(size=(HEIGHT, WIDTH, 5))
    seen = jax.jit(lambda head, f, rois: head(f, rois))(
        head, features(x[None]), jnp.asarray(ROIS)
    )
    assert seen.representation is None
    for b, roi in enumerate(ROIS[0]):
        logits = vote(head.scores, x, roi, CLASSES + 1)
        boxes = vote(head.boxes, x, roi, 8 if background_boxes else 4)
        np.testing.assert_allclose(seen.logits[0, b], logits, atol=1e-10)
        # Those of the background are not used.
        np.testing.assert_allclose(seen.deltas[0, b, 0], boxes[-4:], atol=1e-10)


@pytest.mark.parametrize("deformable", [False, True])
def test_padding_changes_nothing(x64, deformable):
    head = random_head(deformable=deformable)
    x = np.random.default_rng(5).normal(size=(1, HEIGHT, WIDTH, 5))
    padded = np.pad(x, ((0, 0), (0, 2), (0, 3), (0, 0)), constant_values=9.0)
    size = jnp.asarray([[HEIGHT * STRIDE, WIDTH * STRIDE]], jnp.int32)
    exact = head(features(x), jnp.asarray(ROIS))
    other = head(features(padded, size), jnp.asarray(ROIS))
    np.testing.assert_allclose(other.logits, exact.logits, atol=1e-12)
    np.testing.assert_allclose(other.deltas, exact.deltas, atol=1e-12)


def test_it_starts_without_offsets():
    make = dict(output_size=2, spatial_scale=0.25, offset_classes=3, rngs=nnx.Rngs(0))
    pool = PSRoIPool(4, 6, **make)
    assert pool.offset_conv.kernel.shape == (1, 1, 4, 2 * 2 * 3 * 2)
    assert not pool.offset_conv.kernel[...].any()
    assert not hasattr(PSRoIPool(4, 6, deformable=False, **make), "offset_conv")


def count(num_classes, deformable):
    def make():
        return r_fcn(
            num_classes,
            backbone=dict(
                depths=(3, 4, 6, 3),
                deform_blocks=(0, 0, 0, 3 if deformable else 0),
                modulated=False,
                output_stride=16,
            ),
            neck=dict(features=1024),
            rpn={},
            psroi=dict(deformable=deformable, background_boxes=True),
            rngs=nnx.Rngs(0),
        )

    params = nnx.state(nnx.eval_shape(make), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters_that_offsets_add_on_voc():
    """Table 4 of the first paper prints 2.4 million."""
    assert count(20, True) - count(20, False) == 2_458_786


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bins": 0}, ValueError, "`bins` is 0; expected at least 1"),
        ({"bins": 2.0}, TypeError, "`bins` is 2.0; expected an integer"),
        ({"samples_per_part": 0}, ValueError, "`samples_per_part` is 0; expected at l"),
        ({"offset_scale": np.nan}, ValueError, "`offset_scale` is nan; expected a fin"),
        ({"num_classes": 0}, ValueError, "`num_classes` is 0; expected at least 1"),
        ({"rngs": 0}, TypeError, "`rngs` is int; expected flax.nnx.Rngs"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments = dict(in_features=4, num_classes=2, strides=(8,), rngs=nnx.Rngs(0))
    with pytest.raises(error, match=message):
        PSRoIHead(**(arguments | changes))


def test_offset_classes_divide_the_result():
    with pytest.raises(ValueError, match="`offset_classes` is 4; expected a divisor"):
        PSRoIPool(4, 6, 2, spatial_scale=1.0, offset_classes=4, rngs=nnx.Rngs(0))


def test_it_cannot_mimic(x64, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="`head` is PSRoIHead, which has no represent"):
        Mimic(random_head(), rngs=nnx.Rngs(0))
