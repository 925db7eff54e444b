"""nms: torchvision's vectors, a plain oracle, batching and hostile input."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backend import on_cpu
from tests.support.golden import GOLDEN
from xla_ops import nms

FILES = sorted(p.stem for p in GOLDEN.glob("*nms_*.npz"))
BOTH = pytest.mark.parametrize("implementation", ["ffi", "reference"])


def compiled(**settings):
    return jax.jit(functools.partial(nms, **settings))


def kept(result):
    indices, valid = map(np.asarray, result)
    assert indices.dtype == np.int32
    assert valid.dtype == np.bool_
    # Kept boxes first, zeros after.
    assert not np.any(valid[1:] & ~valid[:-1])
    assert not indices[~valid].any()
    return indices[valid]


def iou(a, b):
    """In the type of the boxes, rounded after every operation."""
    zero = a.dtype.type(0)
    width = max(zero, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(zero, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    area_a, area_b = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    with np.errstate(invalid="ignore"):
        return overlap / (area_a + area_b - overlap)


def oracle(boxes, scores, threshold, max_outputs, class_ids, valid):
    order = sorted(np.flatnonzero(valid), key=lambda i: -scores[i])
    selected = []
    for i in order:
        rivals = [j for j in selected if class_ids[j] == class_ids[i]]
        if not any(float(iou(boxes[j], boxes[i])) > threshold for j in rivals):
            selected.append(i)
    return selected[:max_outputs]


def random_boxes(seed, count, dtype=np.float32):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    size = rng.uniform(5, 50, (count, 2))
    scores = rng.uniform(size=count).round(1)  # many ties
    return np.concatenate([corner, corner + size], 1).astype(dtype), scores.astype(
        dtype
    )


@pytest.mark.parametrize("bits", ["f32", "f64"])
@BOTH
@pytest.mark.parametrize("file", FILES)
def test_golden(file, implementation, bits):
    golden = np.load(GOLDEN / f"{file}.npz")
    with jax.enable_x64(bits == "f64"):
        dtype = np.float64 if bits == "f64" else np.float32
        run = compiled(
            iou_threshold=float(golden["iou_threshold"]),
            max_outputs=max(len(golden["scores"]), 1),
            implementation=implementation,
        )
        result = run(
            golden["boxes"].astype(dtype),
            golden["scores"].astype(dtype),
            class_ids=golden["idxs"].astype(np.int32) if "idxs" in golden else None,
        )
    name = "keep_from_f64" if bits == "f64" and "keep_from_f64" in golden else "keep"
    np.testing.assert_array_equal(kept(result), golden[name])


@BOTH
@pytest.mark.parametrize("max_outputs", [7, 300])
def test_equals_oracle(implementation, max_outputs):
    boxes, scores = random_boxes(0, 200)
    rng = np.random.default_rng(1)
    class_ids = rng.integers(0, 3, 200).astype(np.int32)
    valid = rng.uniform(size=200) < 0.8
    settings = dict(threshold=0.4, max_outputs=max_outputs)
    run = compiled(
        iou_threshold=0.4, max_outputs=max_outputs, implementation=implementation
    )
    result = run(boxes, scores, class_ids=class_ids, valid=valid)
    want = oracle(boxes, scores, **settings, class_ids=class_ids, valid=valid)
    np.testing.assert_array_equal(kept(result), want)


@pytest.mark.parametrize("max_outputs", [20, 400])
@BOTH
def test_many_classes(implementation, max_outputs):
    """Every box of a class stands on boxes of the others; ids may be any integers."""
    boxes, scores = random_boxes(7, 400)
    boxes = np.repeat(boxes[::8], 8, axis=0)
    ids = np.asarray([-(2**31), 2**31 - 1, -1, 0, *range(100, 126)], np.int32)
    class_ids = np.random.default_rng(8).choice(ids, 400)
    run = compiled(
        iou_threshold=0.3, max_outputs=max_outputs, implementation=implementation
    )
    want = oracle(boxes, scores, 0.3, max_outputs, class_ids, np.ones(400, bool))
    assert len(want) < 400
    np.testing.assert_array_equal(kept(run(boxes, scores, class_ids=class_ids)), want)


@BOTH
def test_iou_is_rounded_as_written(implementation):
    """Pairs of boxes whose IoU a fused product and sum would round another way."""

    def fused(a, b):
        sides = np.minimum(a, b)[2:] - np.maximum(a, b)[:2]
        areas = sum(np.prod(c[2:] - c[:2]) for c in (a, b))
        union = np.float32(np.float64(areas) - np.prod(sides.astype(np.float64)))
        return np.prod(sides) / union

    boxes, _ = random_boxes(2, 400)
    pairs = [p for p in boxes.reshape(-1, 2, 4) if iou(*p) > 0]
    pairs = [p for p in pairs if iou(*p) != fused(*p)]
    for up in (True, False):
        pair = next(p for p in pairs if (iou(*p) > fused(*p)) == up)
        run = compiled(
            iou_threshold=float(min(iou(*pair), fused(*pair))),
            max_outputs=2,
            implementation=implementation,
        )
        result = run(pair, np.asarray([0.9, 0.8], np.float32))
        assert len(kept(result)) == (1 if up else 2)


@BOTH
def test_threshold_is_compared_as_float64(implementation):
    # As in torchvision: float32(0.4) is above 0.4, float32(0.7) below 0.7.
    for width, threshold, count in [(4, 0.4, 1), (7, 0.7, 2)]:
        boxes = np.asarray([[0, 0, 10, 1], [0, 0, width, 1]], np.float32)
        run = compiled(
            iou_threshold=threshold, max_outputs=2, implementation=implementation
        )
        result = run(boxes, np.asarray([0.9, 0.8], np.float32))
        assert len(kept(result)) == count


@BOTH
def test_hostile_values(implementation):
    nan, inf = np.nan, np.inf
    box = [0.0, 0.0, 10.0, 10.0]
    boxes = np.asarray(
        [
            [nan, 0, 10, 10],  # never kept, drops nothing
            box,
            box,  # NaN score: the same
            [0, 0, inf, inf],
            [-inf, -inf, inf, inf],
            [10, 10, 0, 0],  # inverted
            [1e30, 1e30, 3e30, 3e30],
            [5, 5, 5, 5],  # no area
            [5, 5, 5, 5],
            box,  # dropped by its twin
        ],
        np.float32,
    )
    scores = np.asarray([9, 8, nan, inf, 6, 5, 4, 3, -inf, 1], np.float32)
    run = compiled(iou_threshold=0.5, max_outputs=20, implementation=implementation)
    result = run(boxes, scores)
    np.testing.assert_array_equal(kept(result), [3, 1, 4, 5, 6, 7, 8])


@BOTH
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0,), (0, 3, 4)])
def test_empty(implementation, shape):
    run = compiled(iou_threshold=0.5, max_outputs=3, implementation=implementation)
    indices, valid = run(jnp.zeros((*shape, 4)), jnp.zeros(shape))
    assert indices.shape == valid.shape == (*shape[:-1], 3)
    assert not valid.any()


def test_leading_axes_and_vmap():
    boxes, scores = random_boxes(3, 2 * 3 * 20)
    boxes, scores = boxes.reshape(2, 3, 20, 4), scores.reshape(2, 3, 20)
    settings = dict(iou_threshold=0.3, max_outputs=9)
    want = [
        [nms(boxes[i, j], scores[i, j], **settings) for j in range(3)] for i in range(2)
    ]
    want = [np.stack([[image[k] for image in row] for row in want]) for k in (0, 1)]

    def run(boxes, scores):
        return nms(boxes, scores, **settings)

    mapped = jax.vmap(run)
    shared = jax.vmap(run, in_axes=(None, 1), out_axes=1)
    for got in (
        run(boxes, scores),
        jax.jit(mapped)(boxes, scores),
        jax.vmap(mapped)(boxes, scores),
        run(boxes.astype(jnp.float32), jnp.asarray(scores)),
    ):
        for k in (0, 1):
            np.testing.assert_array_equal(got[k], want[k])
    got = shared(boxes[0], np.stack([scores[0]] * 2, axis=1))
    np.testing.assert_array_equal(got[0], np.stack([want[0][0]] * 2, axis=1))
    # One custom call, whatever is mapped.
    text = jax.jit(jax.vmap(mapped)).lower(boxes, scores).as_text()
    assert text.count("custom_call @dcn_jax.nms") == 1


@BOTH
def test_half_precision_and_no_gradient(implementation):
    boxes, scores = random_boxes(4, 30)
    boxes = jnp.asarray(boxes, jnp.bfloat16)
    run = functools.partial(
        nms, iou_threshold=0.5, max_outputs=8, implementation=implementation
    )

    def best(boxes, scores):
        indices, valid = run(boxes, scores)
        return jnp.where(valid, scores[indices], 0).sum(), (indices, valid)

    gradient = jax.jit(jax.grad(best, argnums=(0, 1), has_aux=True))
    (to_boxes, to_scores), half = gradient(boxes, jnp.asarray(scores))
    _, full = gradient(boxes.astype(jnp.float32), jnp.asarray(scores))
    np.testing.assert_array_equal(half[0], full[0])
    assert not to_boxes.any()
    assert float(to_scores.sum()) == int(full[1].sum())


def test_images_do_not_depend_on_each_other():
    boxes, scores = random_boxes(5, 6 * 500)
    boxes, scores = boxes.reshape(6, 500, 4), scores.reshape(6, 500)
    together = nms(boxes, scores, iou_threshold=0.5, max_outputs=200)
    for n in range(6):
        alone = nms(boxes[n], scores[n], iou_threshold=0.5, max_outputs=200)
        np.testing.assert_array_equal(together[0][n], alone[0])


BOXES, SCORES = random_boxes(6, 5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(boxes=[[0, 0, 1, 1]]), TypeError, "`boxes` is list; expected an array"),
        (
            dict(boxes=BOXES[:, :3]),
            ValueError,
            "`boxes` has shape (5, 3); expected (..., B, 4)",
        ),
        (
            dict(boxes=BOXES[0]),
            ValueError,
            "`boxes` has shape (4,); expected (..., B, 4)",
        ),
        (dict(boxes=BOXES.astype(np.int32)), TypeError, "`boxes` has dtype int32"),
        (dict(scores=SCORES[:3]), ValueError, "`scores` has shape (3,); expected (5,)"),
        (dict(scores=SCORES > 0), TypeError, "`scores` has dtype bool"),
        (dict(class_ids=SCORES), TypeError, "`class_ids` has dtype float32"),
        (
            dict(class_ids=np.zeros(4, np.int32)),
            ValueError,
            "`class_ids` has shape (4,)",
        ),
        (dict(valid=np.ones(5)), TypeError, "`valid` has dtype float"),
        (dict(valid=np.ones(6, bool)), ValueError, "`valid` has shape (6,)"),
        (
            dict(iou_threshold=1.5),
            ValueError,
            "`iou_threshold` is 1.5; expected 0 to 1",
        ),
        (dict(iou_threshold=10**400), ValueError, "`iou_threshold` is 1000000"),
        (dict(iou_threshold=float("nan")), ValueError, "`iou_threshold` is nan"),
        (dict(iou_threshold="0.5"), TypeError, "`iou_threshold` is '0.5'"),
        (dict(max_outputs=0), ValueError, "`max_outputs` is 0; expected at least 1"),
        (dict(max_outputs=2.0), TypeError, "`max_outputs` is 2.0; expected an integer"),
        (dict(implementation="xla"), ValueError, "`implementation` is 'xla'"),
    ],
)
def test_bad_arguments(changes, error, message):
    arguments = dict(boxes=BOXES, scores=SCORES, iou_threshold=0.5, max_outputs=3)
    arguments.update(changes)
    # Without the type checks of the tests, as a user calls it.
    unchecked = inspect.unwrap(nms)
    with pytest.raises(error, match=re.escape(message)):
        unchecked(**arguments)


def test_nms_of_many_boxes():
    """More boxes than a word has bits, and more outputs than there are boxes."""
    rng = np.random.default_rng(0)
    centre = jnp.asarray(rng.normal(size=(2, 400, 2)) * 30, jnp.float32)
    size = jnp.asarray(1 + abs(rng.normal(size=(2, 400, 2))) * 8, jnp.float32)
    boxes = jnp.concatenate([centre - size, centre + size], -1)
    classes = (centre[..., 0] > 0).astype(jnp.int32)

    def run(implementation, max_outputs):
        return nms(
            boxes,
            jnp.round(centre[..., 1]),
            iou_threshold=0.3,
            max_outputs=max_outputs,
            class_ids=classes,
            valid=size[..., 0] > 1.5,
            implementation=implementation,
        )

    for max_outputs in (90, 500):
        got = run("ffi", max_outputs)
        with on_cpu():
            want = run("reference", max_outputs)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
    kept = got[1].sum(-1)
    assert kept.min() > 90
    assert kept.max() < 400
