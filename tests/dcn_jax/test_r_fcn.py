"""R-FCN as a whole: its losses, hard examples, and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.detection import box_head
from dcn_jax.detection.box_head import BoxTargets, RoISampling
from tests.support.tiny_detector import tiny_batch, tiny_r_fcn

box_losses = jax.jit(box_head.box_losses, static_argnames=("beta", "hardest"))
box_targets = jax.jit(box_head.box_targets, static_argnums=6)


@pytest.fixture(scope="module")
def model():
    model = tiny_r_fcn({"deform_blocks": (0, 0, 0, -1)})
    for branch in (
        model.trunk.backbone.layer4[0].conv2.offset_conv,
        model.roi.scores.offset_conv,
        model.roi.boxes.offset_conv,
    ):
        noise = np.random.default_rng(1).normal(size=branch.bias.shape)
        branch.bias[...] = jnp.asarray(noise, jnp.float32)
    return model


def test_what_is_learned(model):
    losses = nnx.eval_shape(lambda m: m.losses(tiny_batch(), jax.random.key(0)), model)
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box"}
    assert all(loss.shape == () for loss in losses.values())


@pytest.mark.slow
def test_losses_are_finite_also_where_there_is_nothing_to_learn(model):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params, rest, batch):
        def total(params):
            losses = nnx.merge(graph, params, rest).losses(batch, jax.random.key(0))
            return sum(losses.values()), losses

        gradient, losses = jax.grad(total, has_aux=True)(params)
        return losses, gradient

    batch = tiny_batch(images=3)
    batch = batch._replace(
        valid=batch.valid.at[1:].set(False), sizes=batch.sizes.at[2].set(0)
    )
    losses, gradient = run(params, rest, batch)
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box"}
    assert all(jnp.isfinite(v) and v > 0 for v in losses.values())
    for path, leaf in nnx.to_flat_state(gradient):
        assert jnp.isfinite(leaf[...]).all(), path
    losses, _ = run(params, rest, batch._replace(valid=jnp.zeros_like(batch.valid)))
    assert losses["box"] == 0 and jnp.isfinite(losses["class"])


def test_padding_changes_no_detection(model):
    detect = jax.jit(lambda model, images, sizes: model.predict(images, sizes))
    batch = tiny_batch(images=2, height=50, width=41)
    exact = detect(model, batch.images, batch.sizes)
    canvas = jnp.pad(
        batch.images, ((0, 0), (0, 14), (0, 39), (0, 0)), constant_values=200
    )
    padded = detect(model, canvas, batch.sizes)
    assert exact.valid.any(1).all()
    np.testing.assert_array_equal(padded.valid, exact.valid)
    np.testing.assert_array_equal(padded.labels, exact.labels)
    np.testing.assert_allclose(padded.scores, exact.scores, atol=1e-4)
    np.testing.assert_allclose(padded.boxes, exact.boxes, atol=1e-3)


def random_rois(seed=0, rois=6):
    """Logits, deltas and targets of two images, whose last RoI does not count."""
    rng = np.random.default_rng(seed)
    valid = np.ones((2, rois), bool)
    valid[:, -1] = False
    labels = rng.integers(0, 3, (2, rois)).astype(np.int32)
    logits = jnp.asarray(rng.normal(size=(2, rois, 3)), jnp.float32)
    deltas = jnp.asarray(rng.normal(size=(2, rois, 1, 4)), jnp.float32)
    targets = BoxTargets(
        rois=jnp.zeros((2, rois, 4)),
        labels=jnp.asarray(labels),
        valid=jnp.asarray(valid),
        deltas=jnp.asarray(rng.normal(size=(2, rois, 4)), jnp.float32),
        is_ground_truth=jnp.zeros((2, rois), bool),
        matched=jnp.zeros((2, rois), jnp.int32),
    )
    return logits, deltas, targets


def test_the_hardest_are_those_with_the_largest_sum_of_losses():
    logits, deltas, targets = random_rois()
    found = box_losses(logits, deltas, targets, hardest=2)
    kept, entropies, distances = [], 0.0, 0.0
    for image in range(2):
        rows = []
        for roi in range(6):
            label = int(targets.labels[image, roi])
            entropy = -jax.nn.log_softmax(logits[image, roi])[label]
            away = np.abs(deltas[image, roi, 0] - targets.deltas[image, roi])
            bent = np.where(away < 1, away**2 / 2, away - 0.5).sum()
            distance = float(bent) if label else 0.0
            if targets.valid[image, roi]:
                rows.append((float(entropy) + distance, float(entropy), distance))
        for _, entropy, distance in sorted(rows, reverse=True)[:2]:
            entropies, distances = entropies + entropy, distances + distance
            kept.append(entropy)
    np.testing.assert_allclose(found["class"], entropies / 4, rtol=1e-5)
    np.testing.assert_allclose(found["box"], distances / 4, rtol=1e-5)


def test_more_hard_examples_than_there_are_is_all_of_them():
    arguments = random_rois()
    every, hard = box_losses(*arguments), box_losses(*arguments, hardest=9)
    for name, loss in every.items():
        np.testing.assert_allclose(hard[name], loss, rtol=1e-6)


def test_only_the_hardest_get_a_gradient():
    logits, deltas, targets = random_rois()
    gradient = jax.grad(lambda x: box_losses(x, deltas, targets, hardest=2)["class"])(
        logits
    )
    assert (jnp.abs(gradient).sum(-1) > 0).sum(1).tolist() == [2, 2]


def test_rois_with_little_overlap_are_no_background():
    boxes = jnp.asarray([[[0.0, 0, 10, 10]]])
    # Overlaps of 1, 0.3, 0.05 and 0.
    proposals = jnp.asarray(
        [[[0.0, 0, 10, 10], [0, 0, 10, 3], [0, 0, 10, 0.5], [20, 20, 30, 30]]]
    )
    valid, labels = jnp.ones((1, 4), bool), jnp.asarray([[2]], jnp.int32)

    def sampled(least):
        sampling = RoISampling(samples=8, positive_fraction=0.5, least_iou=least)
        targets = box_targets(
            jax.random.key(0),
            proposals,
            valid,
            boxes,
            labels,
            jnp.ones((1, 1), bool),
            sampling,
        )
        return sorted(np.asarray(targets.labels[targets.valid]).tolist())

    # The ground truth is a RoI too.
    assert sampled(0.0) == [0, 0, 0, 2, 2]
    assert sampled(0.1) == [0, 2, 2]
