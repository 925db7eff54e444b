from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax import rpn
from dcn_jax.detection.rpn import anchors_of_grid, rpn_losses, usable_anchors

# One compilation in place of one for each operation.
propose = jax.jit(
    rpn.propose, static_argnames=("pre_nms_top_n", "post_nms_top_n", "nms_threshold")
)
rpn_targets = jax.jit(
    rpn.rpn_targets, static_argnames=("samples", "positive_iou", "negative_iou")
)

GOLDEN = Path(__file__).parent.parent / "golden" / "detectors" / "faster_rcnn_dc5.npz"


@pytest.fixture(scope="module")
def peer():
    """The detector of torchvision on one level, with its map as we lay it out."""
    with np.load(GOLDEN) as file:
        golden = {k: file[k] for k in file.files if not k.startswith("grad/")}

    def rows(x, last):
        n, channels, h, w = x.shape
        x = x.reshape(n, channels // last, last, h, w).transpose(0, 3, 4, 1, 2)
        return jnp.asarray(x.reshape(n, -1, last))

    golden["logits"] = rows(golden["rpn_logits/0"], 1)[..., 0]
    golden["deltas"] = rows(golden["rpn_deltas/0"], 4)
    golden["targets"] = [
        jnp.asarray(np.stack([golden[f"target_{k}_{i}"] for i in range(2)]))
        for k in ("boxes", "labels")
    ]
    return golden


def peer_anchors():
    return anchors_of_grid((10, 12), 16, (24, 48, 96), (0.5, 1, 2))


def test_anchors_are_those_of_the_peer(peer):
    np.testing.assert_array_equal(peer_anchors(), peer["anchors"])


def test_proposals_are_those_of_the_peer(peer):
    # The peer drops proposals under a score after it has taken the best 80.
    usable = jax.nn.sigmoid(peer["logits"]) >= peer["config/rpn_score_thresh"].astype(
        np.float32
    )
    proposals = propose(
        peer["logits"],
        peer["deltas"],
        peer_anchors(),
        usable,
        jnp.asarray(peer["image_sizes"].astype(np.int32)),
        pre_nms_top_n=80,
        post_nms_top_n=60,
        nms_threshold=0.7,
    )
    for i in range(2):
        expected = peer[f"proposals_{i}_f32"]
        assert proposals.valid[i].sum() == len(expected)
        np.testing.assert_allclose(
            proposals.boxes[i][: len(expected)], expected, atol=3e-4
        )
        np.testing.assert_allclose(
            jax.nn.sigmoid(proposals.logits[i][: len(expected)]),
            peer[f"proposal_scores_{i}_f32"],
            atol=1e-6,
        )


def test_targets_and_losses_are_those_of_the_peer(peer):
    boxes, _ = peer["targets"]
    targets = rpn_targets(
        jax.random.key(0),
        peer_anchors(),
        jnp.ones((2, 1080), bool),
        boxes,
        jnp.ones((2, 6), bool),
        samples=4000,
    )
    for i in range(2):
        label = np.full(1080, -1)
        index = targets.index[i][targets.valid[i]]
        assert len(np.unique(index)) == len(index)
        label[index] = targets.positive[i][targets.valid[i]]
        np.testing.assert_array_equal(label, peer[f"rpn_labels_{i}"])
    losses = rpn_losses(peer["logits"], peer["deltas"], targets)
    for ours, theirs in (("rpn_class", "objectness"), ("rpn_box", "rpn_box_reg")):
        np.testing.assert_allclose(
            losses[ours], peer[f"loss/loss_{theirs}_f64"], rtol=2e-5
        )


def test_padding_is_neither_proposed_nor_learnt():
    sizes = jnp.asarray([[33, 64], [64, 17]], jnp.int32)
    usable = usable_anchors(sizes, (4, 4), 16, 2)
    grid = usable.reshape(2, 4, 4, 2)
    assert grid[0, :3].all() and not grid[0, 3:].any()
    assert grid[1, :, :2].all() and not grid[1, :, 2:].any()

    anchors = anchors_of_grid((4, 4), 16, (16,), (0.5, 2))
    logits = jnp.where(usable, 0.0, 9.0)
    proposals = propose(
        logits,
        jnp.zeros((2, 32, 4)),
        anchors,
        usable,
        sizes,
        pre_nms_top_n=32,
        post_nms_top_n=32,
    )
    assert proposals.logits.max() == 0
    limit = sizes[:, None, ::-1].astype(jnp.float32)
    assert (proposals.boxes[..., 2:] <= limit).all()

    boxes = jnp.asarray([[[0, 40, 20, 60]], [[40, 0, 60, 20]]], jnp.float32)
    targets = rpn_targets(
        jax.random.key(0), anchors, usable, boxes, jnp.ones((2, 1), bool), samples=32
    )
    chosen = jax.vmap(lambda u, i: u[i])(usable, targets.index)
    assert chosen[targets.valid].all()
    assert (targets.valid.sum(1) == usable.sum(1)).all()


def test_sampling_is_random_by_key_and_balanced():
    anchors = anchors_of_grid((8, 8), 8, (16,), (1,))
    boxes = jnp.asarray([[[8, 8, 40, 40], [16, 16, 32, 32]]], jnp.float32)

    def sample(key):
        return rpn_targets(
            key,
            anchors,
            jnp.ones((1, 64), bool),
            boxes,
            jnp.ones((1, 2), bool),
            samples=8,
            positive_iou=0.1,
            negative_iou=0.1,
        )

    first, second = sample(jax.random.key(0)), sample(jax.random.key(1))
    assert first.valid.all() and first.positive.sum() == 4
    assert (first.index != second.index).any()
    assert (sample(jax.random.key(0)).index == first.index).all()


def test_images_without_ground_truth_teach_background():
    anchors = anchors_of_grid((4, 4), 16, (16,), (1,))
    targets = rpn_targets(
        jax.random.key(0),
        anchors,
        jnp.ones((1, 16), bool),
        jnp.zeros((1, 3, 4)),
        jnp.zeros((1, 3), bool),
        samples=8,
    )
    assert targets.valid.all() and not targets.positive.any()

    def total(logits, deltas):
        return sum(rpn_losses(logits, deltas, targets).values())

    grads = jax.jit(jax.grad(total, (0, 1)))(jnp.zeros((1, 16)), jnp.zeros((1, 16, 4)))
    assert jnp.isfinite(grads[0]).all() and (grads[1] == 0).all()


def test_non_finite_predictions_are_not_proposed():
    anchors = anchors_of_grid((2, 2), 16, (16,), (1,))
    logits = jnp.asarray([[jnp.nan, 1.0, 2.0, 3.0]])
    deltas = jnp.zeros((1, 4, 4)).at[0, 1, 0].set(jnp.inf).at[0, 2, 3].set(jnp.nan)
    proposals = propose(
        logits,
        deltas,
        anchors,
        jnp.ones((1, 4), bool),
        jnp.asarray([[32, 32]], jnp.int32),
        pre_nms_top_n=4,
        post_nms_top_n=4,
    )
    assert proposals.valid.sum() == 1 and proposals.logits[0, 0] == 3
    assert jnp.isfinite(proposals.boxes).all()


def test_no_images():
    def outputs(x):
        return rpn.RPNHead(4, 3, features=5, rngs=nnx.Rngs(0))(x)

    logits, deltas = jax.eval_shape(outputs, jnp.ones((0, 2, 3, 4)))
    assert logits.shape == (0, 18)
    assert deltas.shape == (0, 18, 4)
    sizes = jnp.ones((0, 2), jnp.int32)
    assert usable_anchors(sizes, (2, 3), 16, 3).shape == (0, 18)
