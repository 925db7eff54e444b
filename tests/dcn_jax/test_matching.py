"""Matching of candidates to ground truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcn_jax.boxes.matching import match_boxes

# Ground-truth rows by candidate columns.
IOU = jnp.asarray(
    [
        [0.9, 0.5, 0.2, 0.0, 0.40, 0.7],
        [0.1, 0.6, 0.1, 0.0, 0.45, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.00, 0.0],
    ]
)
ALL = jnp.ones(3, bool)


def match(iou=IOU, valid=ALL, low=0.3, high=0.7, allow_low_quality=False):
    return match_boxes(
        iou, valid, low=low, high=high, allow_low_quality=allow_low_quality
    )


def test_thresholds():
    result = match()
    np.testing.assert_array_equal(result.index, [0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(result.label, [1, -1, 0, 0, -1, 1])
    assert result.index.dtype == result.label.dtype == jnp.int32
    equal = match(low=0.5, high=0.5)
    np.testing.assert_array_equal(equal.label, [1, 1, 0, 0, 0, 1])


def test_low_quality_matches_keep_their_own_best_box():
    result = match(allow_low_quality=True)
    np.testing.assert_array_equal(result.label, [1, 1, 0, 0, -1, 1])
    # Column 1 is the best of both rows, and belongs to row 0.
    iou = jnp.asarray([[0.1, 0.65], [0.0, 0.5]])
    result = match(iou, jnp.ones(2, bool), allow_low_quality=True)
    np.testing.assert_array_equal(result.label, [0, 1])
    np.testing.assert_array_equal(result.index, [0, 0])
    ties = match(jnp.asarray([[0.4, 0.4, 0.1]]), ALL[:1], allow_low_quality=True)
    np.testing.assert_array_equal(ties.label, [1, 1, 0])


def test_padding_rows_match_nothing():
    valid = jnp.asarray([False, True, True])
    result = match(valid=valid, allow_low_quality=True)
    np.testing.assert_array_equal(result.label, [0, 1, 0, 0, -1, 0])
    nothing = match(valid=jnp.zeros(3, bool), allow_low_quality=True)
    np.testing.assert_array_equal(nothing.label, np.zeros(6))
    np.testing.assert_array_equal(nothing.index, np.zeros(6))


def test_a_candidate_out_of_play_does_not_take_a_box():
    iou = IOU.at[:, 0].set(-1)
    result = match(iou, high=0.8, allow_low_quality=True)
    np.testing.assert_array_equal(result.label, [0, 1, 0, 0, -1, 1])


def test_under_vmap_and_jit():
    both = jnp.stack([IOU, IOU[:, ::-1]])
    result = jax.jit(jax.vmap(match))(both, jnp.stack([ALL, ALL]))
    np.testing.assert_array_equal(result.label[1], np.asarray(match().label)[::-1])


def test_crossed_thresholds_are_refused():
    with pytest.raises(ValueError, match=r"`low` is 0\.7; expected at most `high`"):
        match(low=0.7, high=0.3)
