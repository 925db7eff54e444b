"""Box arithmetic against torchvision's numbers and at its edges."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcn_jax import boxes

GOLDEN = Path(__file__).parents[1] / "golden"


def close(actual, expected, tolerance=1e-5):
    actual = np.asarray(actual)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


def test_iou_and_area_are_torchvisions():
    golden = np.load(GOLDEN / "box_iou.npz")
    a, b = jnp.asarray(golden["boxes1"]), jnp.asarray(golden["boxes2"])
    close(boxes.box_area(a), golden["area1"])
    close(boxes.box_area(b), golden["area2"])
    close(jax.jit(boxes.box_iou)(a, b), golden["iou"])
    close(jax.jit(boxes.generalized_box_iou)(a, b), golden["giou"])
    batched = jax.jit(boxes.box_iou)(*(jnp.stack([v, v]) for v in (a, b)))
    close(batched[1], golden["iou"])
    assert batched.shape == (2, 23, 26)


@pytest.mark.parametrize("name", ["box_coder_1_1_1_1", "box_coder_10_10_5_5"])
def test_coding_is_torchvisions(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    code = boxes.BoxCode(tuple(float(w) for w in golden["weights"]))
    proposals = jnp.asarray(golden["proposals"])
    reference = jnp.asarray(golden["reference_boxes"])
    close(boxes.encode_boxes(reference, proposals, code), golden["encoded"])
    deltas = jnp.asarray(golden["deltas"])
    close(boxes.decode_boxes(deltas, proposals, code), golden["decoded"])
    by_class = boxes.decode_boxes(
        jnp.stack([deltas, deltas], axis=1), proposals[:, None], code
    )
    close(by_class[:, 1], golden["decoded"])


def test_clipping_is_torchvisions():
    golden = np.load(GOLDEN / "clip_boxes.npz")
    size = jnp.asarray([golden["image_height"], golden["image_width"]], jnp.int32)
    clipped = boxes.clip_boxes(jnp.asarray(golden["boxes"]), size)
    np.testing.assert_array_equal(clipped, golden["clipped"])
    large = boxes.large_enough(clipped, float(golden["min_size"]))
    np.testing.assert_array_equal(np.flatnonzero(large), golden["keep_small"])


def test_each_image_has_its_own_size():
    box = jnp.asarray([[-5.0, -5.0, 99.0, 99.0]])
    clipped = boxes.clip_boxes(
        jnp.stack([box, box]), jnp.asarray([[10, 20], [30, 40]], jnp.int32)
    )
    np.testing.assert_array_equal(clipped[:, 0], [[0, 0, 20, 10], [0, 0, 40, 30]])


def test_decoding_inverts_encoding():
    key_a, key_b = jax.random.split(jax.random.key(0))
    anchor, box = (
        jnp.concatenate([corner[:, :2], corner[:, :2] + corner[:, 2:] + 1], axis=1)
        for corner in (jax.random.uniform(k, (20, 4)) * 50 for k in (key_a, key_b))
    )
    code = boxes.BoxCode((10.0, 10.0, 5.0, 5.0))
    deltas = boxes.encode_boxes(box, anchor, code)
    close(boxes.decode_boxes(deltas, anchor, code), box)


def test_shrinking_is_bounded_where_asked_for():
    box = jnp.asarray([[0.0, 0.0, 100.0, 100.0]])
    deltas = jnp.asarray([[0.0, 0.0, -9.0, 9.0]])
    for clamp, width in ((False, 100 * np.exp(-9)), (True, 100 * 16 / 1000)):
        found = boxes.decode_boxes(deltas, box, boxes.BoxCode(clamp_shrinking=clamp))[0]
        np.testing.assert_allclose(found[2] - found[0], width, rtol=1e-2)
        np.testing.assert_allclose(found[3] - found[1], 100 * 1000 / 16, rtol=1e-5)


def test_padding_boxes_stay_finite():
    zero = jnp.zeros((2, 4))
    box = jnp.asarray([[0.0, 0.0, 8.0, 8.0], [1.0, 2.0, 1.0, 5.0]])
    for overlap in (boxes.box_iou, boxes.generalized_box_iou):
        gradient = jax.jit(
            jax.grad(lambda z, o=overlap: o(z, zero).sum() + o(z, box).sum())
        )
        assert np.isfinite(jax.jit(overlap)(zero, zero)).all()
        assert np.isfinite(gradient(zero)).all()
    assert not np.any(boxes.box_iou(zero, zero))
    encode = jax.jit(boxes.encode_boxes)
    for a, b in ((zero, box), (box, zero), (zero, zero)):
        assert np.isfinite(encode(a, b)).all()
    assert np.isfinite(boxes.decode_boxes(jnp.full((2, 4), 1e4), box)).all()


def test_half_precision_and_float64_keep_their_type(x64):
    size = jax.ShapeDtypeStruct((2,), jnp.int64)
    for dtype in (jnp.bfloat16, jnp.float64):
        box = jax.ShapeDtypeStruct((3, 4), dtype)
        for function, *arguments in (
            (boxes.box_area, box),
            (boxes.box_iou, box, box),
            (boxes.encode_boxes, box, box),
            (boxes.decode_boxes, box, box),
            (boxes.clip_boxes, box, size),
        ):
            assert jax.eval_shape(function, *arguments).dtype == dtype
