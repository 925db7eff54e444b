"""Balanced random samples, top-k, and their partitioning."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dcn_jax.boxes import box_iou, encode_boxes
from dcn_jax.boxes.anchors import cell_anchors, grid_anchors
from dcn_jax.boxes.matching import match_boxes
from dcn_jax.boxes.sampling import gather_rows, sample_balanced, top_k


def labels(positives, negatives, ignored):
    label = np.repeat([1, 0, -1], [positives, negatives, ignored])
    return jnp.asarray(np.random.default_rng(0).permutation(label), jnp.int32)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected_positives", "expected_valid"),
    [(20, 40, 5, 20), (3, 40, 3, 20), (20, 6, 5, 11), (0, 4, 0, 4), (0, 0, 0, 0)],
)
def test_counts(positives, negatives, expected_positives, expected_valid):
    label = labels(positives, negatives, 7)
    draw = jax.jit(
        lambda k: sample_balanced(k, label, count=20, positive_fraction=0.25)
    )
    for seed in range(3):
        index, positive, valid = map(np.asarray, draw(jax.random.key(seed)))
        assert index.shape == (20,)
        assert positive.sum() == expected_positives
        assert valid.sum() == expected_valid
        assert len(set(index[valid])) == expected_valid
        label_of = np.asarray(label)[index[valid]]
        np.testing.assert_array_equal(label_of, positive[valid].astype(int))
        assert not (positive & ~valid).any()


def test_fewer_candidates_than_rows():
    label = labels(1, 2, 0)
    result = sample_balanced(jax.random.key(0), label, count=8, positive_fraction=1.0)
    assert int(result.valid.sum()) == 3
    none = sample_balanced(jax.random.key(0), label, count=8, positive_fraction=0.0)
    assert int(none.valid.sum()) == 2
    assert not none.positive.any()


def test_every_candidate_is_as_likely():
    label = labels(6, 12, 2)
    draw = jax.jit(
        jax.vmap(lambda k: sample_balanced(k, label, count=9, positive_fraction=1 / 3))
    )
    result = draw(jax.random.split(jax.random.key(0), 2000))
    counts = np.bincount(np.asarray(result.index).reshape(-1), minlength=20) / 2000
    np.testing.assert_allclose(counts[np.asarray(label) == 1], 3 / 6, atol=0.05)
    np.testing.assert_allclose(counts[np.asarray(label) == 0], 6 / 12, atol=0.05)
    assert not counts[np.asarray(label) == -1].any()


def test_top_k_puts_ties_in_order_and_nan_last():
    values, index = top_k(jnp.asarray([[1.0, 3.0, 1.0, jnp.nan], [2.0, 0, 5, 5]]), 3)
    np.testing.assert_array_equal(values, [[3, 1, 1], [5, 5, 2]])
    np.testing.assert_array_equal(index, [[1, 0, 2], [2, 3, 0]])
    assert index.dtype == jnp.int32
    with pytest.raises(ValueError, match="`k` is 5; expected 0 to 4"):
        top_k(jnp.zeros(4), 5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`count` is 0"):
        sample_balanced(
            jax.random.key(0), labels(1, 1, 1), count=0, positive_fraction=1.0
        )
    with pytest.raises(ValueError, match="`positive_fraction` is 25"):
        sample_balanced(
            jax.random.key(0), labels(1, 1, 1), count=4, positive_fraction=25.0
        )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_targets_of_a_sharded_batch_stay_on_their_device(axis_type):
    def targets(keys, boxes, valid, scores):
        anchors = grid_anchors(cell_anchors((32, 64), (0.5, 1.0)), (6, 8), (16, 16))

        def of_image(key, boxes, valid, scores):
            match = match_boxes(
                box_iou(boxes, anchors),
                valid,
                low=0.3,
                high=0.7,
                allow_low_quality=True,
            )
            sample = sample_balanced(key, match.label, count=32, positive_fraction=0.5)
            code = encode_boxes(boxes[match.index], anchors)
            best, index = top_k(scores, 20)
            return sample, code[sample.index], best, code[index]

        return jax.vmap(of_image)(keys, boxes, valid, scores)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    corners = jax.random.uniform(jax.random.key(0), (16, 5, 4)) * 40
    arguments = (
        jax.random.split(jax.random.key(1), 16),
        corners.at[..., 2:].add(40),
        jnp.ones((16, 5), bool),
        jax.random.normal(jax.random.key(2), (16, 6 * 8 * 4)),
    )
    expected = jax.jit(targets)(*arguments)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(arguments, NamedSharding(mesh, P("data")))
        compiled = jax.jit(targets).lower(*sharded).compile()
        actual = compiled(*sharded)
    collectives = r"all-gather|all-to-all|all-reduce|collective-permute"
    assert not re.findall(collectives, compiled.as_text())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected
    )


def test_rows_of_each_image():
    values = np.arange(24).reshape(2, 4, 3)
    rows = gather_rows(jnp.asarray(values), jnp.asarray([[3, 0], [1, 1]], jnp.int32))
    np.testing.assert_array_equal(rows, [values[0, [3, 0]], values[1, [1, 1]]])
