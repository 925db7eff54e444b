import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.detection import rpn
from dcn_jax.detection.rpn import (
    RPN,
    AnchorSampling,
    RPNOutput,
    Selection,
    rpn_losses,
    usable_anchors,
)
from dcn_jax.necks import Levels
from dcn_jax.trunk import Features

# One compilation in place of one for each operation.
rpn_targets = jax.jit(rpn.rpn_targets, static_argnums=6)


@functools.partial(jax.jit, static_argnames=("pre", "post"))
def propose(logits, deltas, anchors, usable, sizes, *, pre, post):
    """Of one level."""
    output = RPNOutput((logits[..., None],), (deltas,), (anchors,), (usable,))
    return rpn.propose(output, sizes, Selection(pre, post))


def anchors_of_grid(grid, stride, anchor_sizes, aspect_ratios):
    def anchors():
        network = RPN(
            1,
            (stride,),
            features=1,
            anchor_sizes=anchor_sizes,
            aspect_ratios=aspect_ratios,
            rngs=nnx.Rngs(0),
        )
        return network.anchors_of_grid(grid, 0)

    return jax.jit(anchors)()


def ones(boxes):
    """The class of all boxes where there is one."""
    return jnp.ones(boxes.shape[:2], jnp.int32)


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
        pre=80,
        post=60,
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
        ones(boxes),
        jnp.ones((2, 6), bool),
        AnchorSampling(samples=4000),
    )
    for i in range(2):
        label = np.full(1080, -1)
        index = targets.index[i][targets.valid[i]]
        assert len(np.unique(index)) == len(index)
        label[index] = targets.labels[i][targets.valid[i]]
        np.testing.assert_array_equal(label, peer[f"rpn_labels_{i}"])
    losses = rpn_losses(peer["logits"][..., None], peer["deltas"], targets)
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
        pre=32,
        post=32,
    )
    assert proposals.logits.max() == 0
    limit = sizes[:, None, ::-1].astype(jnp.float32)
    assert (proposals.boxes[..., 2:] <= limit).all()

    boxes = jnp.asarray([[[0, 40, 20, 60]], [[40, 0, 60, 20]]], jnp.float32)
    targets = rpn_targets(
        jax.random.key(0),
        anchors,
        usable,
        boxes,
        ones(boxes),
        jnp.ones((2, 1), bool),
        AnchorSampling(samples=32),
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
            ones(boxes),
            jnp.ones((1, 2), bool),
            AnchorSampling(samples=8, positive_iou=0.1, negative_iou=0.1),
        )

    first, second = sample(jax.random.key(0)), sample(jax.random.key(1))
    assert first.valid.all() and first.labels.sum() == 4
    assert (first.index != second.index).any()
    assert (sample(jax.random.key(0)).index == first.index).all()


def test_images_without_ground_truth_teach_background():
    anchors = anchors_of_grid((4, 4), 16, (16,), (1,))
    targets = rpn_targets(
        jax.random.key(0),
        anchors,
        jnp.ones((1, 16), bool),
        jnp.zeros((1, 3, 4)),
        jnp.ones((1, 3), jnp.int32),
        jnp.zeros((1, 3), bool),
        AnchorSampling(samples=8),
    )
    assert targets.valid.all() and not targets.labels.any()

    def total(logits, deltas):
        return sum(rpn_losses(logits, deltas, targets).values())

    grads = jax.jit(jax.grad(total, (0, 1)))(
        jnp.zeros((1, 16, 1)), jnp.zeros((1, 16, 4))
    )
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
        pre=4,
        post=4,
    )
    assert proposals.valid.sum() == 1 and proposals.logits[0, 0] == 3
    assert jnp.isfinite(proposals.boxes).all()


def make(strides=(4, 8), **options):
    settings = dict(features=5, anchor_sizes=(8,), aspect_ratios=(1, 2))
    return RPN(3, strides, **(settings | options), rngs=nnx.Rngs(0))


def pyramid(images=2, size=32, strides=(4, 8)):
    """Features of square images, of the second of which half is padding."""
    rng = np.random.default_rng(0)
    maps = tuple(
        jnp.asarray(rng.normal(size=(images, size // s, size // s, 3)), jnp.float32)
        for s in strides
    )
    sizes = jnp.full((images, 2), size, jnp.int32)
    if images > 1:
        sizes = sizes.at[1, 1].set(size // 2)
    return Features(jnp.zeros((images, size, size, 3)), sizes, Levels(maps, ()))


def test_levels_share_weights_and_grow_their_anchors():
    output = jax.jit(make())(pyramid())
    assert [v.shape for v in output.logits] == [(2, 128, 1), (2, 32, 1)]
    assert [v.shape for v in output.deltas] == [(2, 128, 4), (2, 32, 4)]
    sides = [jnp.sqrt(jnp.prod(a[0, 2:] - a[0, :2])) for a in output.anchors]
    np.testing.assert_allclose(sides, [8, 16])
    assert [int(u[1].sum()) for u in output.usable] == [64, 16]
    # One level of the two says what it says alone.
    features = pyramid()
    alone = features._replace(levels=Levels(features.levels.rpn[:1], ()))
    only = jax.jit(make(strides=(4,)))(alone)
    np.testing.assert_array_equal(only.logits[0], output.logits[0])


def test_levels_suppress_apart_and_share_the_proposals():
    """The same box on two levels stays twice; within one it stays once."""
    box = jnp.asarray([[0.0, 0, 16, 16]] * 2)
    output = RPNOutput(
        (jnp.asarray([[[1.0], [0.5]]]), jnp.asarray([[[2.0], [0.2]]])),
        (jnp.zeros((1, 2, 4)),) * 2,
        (box, box),
        (jnp.ones((1, 2), bool),) * 2,
    )
    sizes = jnp.asarray([[32, 32]], jnp.int32)
    found = rpn.propose(output, sizes, Selection(2, 4))
    assert found.valid[0].tolist() == [True, True, False, False]
    assert found.logits[0, :2].tolist() == [2, 1]
    first = rpn.propose(output, sizes, Selection(1, 1))
    assert first.logits[0].tolist() == [2]


def test_classes_are_told_apart():
    """With three classes: four logits, labels of the boxes, any class proposes."""
    network = make(num_classes=3, sampling=AnchorSampling(samples=16))
    boxes = jnp.asarray([[[0, 0, 8, 8]], [[4, 4, 12, 12]]], jnp.float32)

    @jax.jit
    def run(network, features):
        output = network(features)
        labels, valid = jnp.full((2, 1), 2, jnp.int32), jnp.ones((2, 1), bool)
        targets = network.targets(jax.random.key(0), output, boxes, labels, valid)
        losses = network.losses(output, targets)
        return output, targets, losses, network.propose(output, features.sizes)

    output, targets, losses, proposals = run(network, pyramid())
    assert output.logits[0].shape == (2, 128, 4)
    assert set(np.unique(targets.labels)) == {0, 2}
    assert all(jnp.isfinite(loss) and loss > 0 for loss in losses.values())
    np.testing.assert_allclose(losses["rpn_class"], np.log(4), rtol=0.1)
    logits = jnp.concatenate(output.logits, axis=1)[0]
    odds = jax.nn.logsumexp(logits[:, 1:], -1) - logits[:, 0]
    np.testing.assert_allclose(proposals.logits[0, 0], odds.max(), rtol=1e-5)


def test_no_images():
    output = jax.eval_shape(lambda: make()(pyramid(images=0)))
    assert [v.shape for v in output.logits] == [(0, 128, 1), (0, 32, 1)]
    assert [v.shape for v in output.usable] == [(0, 128), (0, 32)]
    sizes = jnp.ones((0, 2), jnp.int32)
    assert usable_anchors(sizes, (2, 3), 16, 3).shape == (0, 18)
