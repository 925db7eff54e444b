import functools
import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from dcn_jax.detection.mimic import Mimic
from dcn_jax.explain import offset_health
from dcn_jax.modules import DeformRoIPool, RoIAlign, RoIPool
from dcn_jax.networks import faster_rcnn
from dcn_jax.trunk import Trunk
from tests.support.tiny_detector import make_detector, tiny_batch, tiny_detector

DETECTOR_LOSSES = {"rpn_class", "rpn_box", "class", "box"}


def step(model):
    """A compiled function: batch to losses and the gradient of their sum."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params, rest, batch):
        def total(params):
            model = nnx.merge(graph, params, rest)
            losses = model.losses(batch, jax.random.key(0))
            return sum(losses.values()), losses

        gradient, losses = jax.grad(total, has_aux=True)(params)
        return losses, gradient

    return lambda batch: run(params, rest, batch)


def test_losses_are_finite_also_where_there_is_nothing_to_learn():
    run = step(tiny_detector({"deform_blocks": (0, 0, -1, -1)}, mimic={}))
    batch = tiny_batch(images=3)
    # The second image has no ground truth, the third one not even pixels.
    batch = batch._replace(
        valid=batch.valid.at[1:].set(False), sizes=batch.sizes.at[2].set(0)
    )
    losses, gradient = run(batch)
    assert set(losses) == DETECTOR_LOSSES | {"mimic_class", "mimic_cos"}
    assert all(jnp.isfinite(v) and v > 0 for v in losses.values())
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))

    losses, gradient = run(batch._replace(valid=jnp.zeros_like(batch.valid)))
    for name in ("rpn_box", "box", "mimic_class", "mimic_cos"):
        assert losses[name] == 0
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_padding_changes_no_detection():
    model = tiny_detector({"deform_blocks": (0, 0, 0, -1)})
    for bias in (
        model.trunk.backbone.layer4[0].conv2.offset_conv.bias,
        model.roi.pool.offset_fc.bias,
    ):
        bias[...] = jax.random.normal(jax.random.key(1), bias.shape)
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

    assert exact.boxes.shape == (2, 10, 4)
    assert (jnp.diff(exact.scores, axis=1) <= 0).all()
    labels = exact.labels[exact.valid]
    assert labels.min() >= 1 and labels.max() <= 3
    assert exact.boxes.min() >= 0
    assert exact.boxes[..., ::2].max() <= 41 and exact.boxes[..., 1::2].max() <= 50


def test_targets_hold_the_decisions_that_the_losses_take():
    model = tiny_detector(pool_layer=RoIAlign, mimic={"crop_size": 16})
    batch = tiny_batch()

    @jax.jit
    def both(model, key):
        targets = model.targets(batch, key)
        return model.losses(batch, key), model.losses(batch, key, targets)

    free, held = both(model, jax.random.key(3))
    for name in free:
        np.testing.assert_allclose(free[name], held[name], rtol=1e-5)
    other, _ = both(model, jax.random.key(4))
    assert free["rpn_class"] != other["rpn_class"]


@pytest.mark.parametrize(
    "options",
    [
        {"pool_layer": RoIAlign, "box": {"class_agnostic": True}},
        {"pool_layer": RoIPool},
        {"pool": {"modulated": False}, "dtype": jnp.bfloat16},
    ],
)
def test_other_poolings_heads_and_types(options):
    model = tiny_detector({"norm": "frozen_bn"}, **options)
    losses, gradient = step(model)(tiny_batch())
    assert set(losses) == DETECTOR_LOSSES
    assert {v.dtype for v in losses.values()} == {jnp.dtype(jnp.float32)}
    assert all(jnp.isfinite(v) for v in losses.values())
    for path, leaf in nnx.to_flat_state(gradient):
        assert leaf.dtype == jnp.float32 and jnp.isfinite(leaf[...]).all(), path


def test_offset_health():
    batch = tiny_batch()

    def health(model):
        return offset_health(model, lambda m: m.features(batch.images, batch.sizes))

    deformable = tiny_detector({"deform_blocks": (0, 0, 0, -1)})
    statistics = jax.jit(health)(deformable)
    assert set(statistics) == {"offset/mean_abs", "offset/outside", "offset/dead"}
    assert statistics["offset/mean_abs"] == 0
    assert jax.eval_shape(health, tiny_detector()) == {}


def test_traces_with_64_bit_types_on(x64):
    model = tiny_detector(mimic={}, param_dtype=jnp.float64)
    batch = tiny_batch()
    found = jax.eval_shape(lambda m: m.predict(batch.images, batch.sizes), model)
    assert found.boxes.dtype == found.scores.dtype == jnp.float32
    losses = jax.eval_shape(lambda m: m.losses(batch, jax.random.key(0)), model)
    assert {v.dtype for v in losses.values()} == {jnp.dtype(jnp.float64)}


@pytest.fixture
def untyped(monkeypatch):
    """As for users, whose calls no type checker looks at."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@functools.cache
def count(deform_blocks, pool_layer, modulated) -> int:
    deforms = pool_layer is DeformRoIPool

    def make():
        return faster_rcnn(
            80,
            backbone=dict(
                depths=(3, 4, 6, 3),
                deform_blocks=deform_blocks,
                modulated=modulated,
                output_stride=16,
            ),
            neck={},
            rpn={},
            pool_layer=pool_layer,
            pool=dict(output_size=7) | (dict(modulated=modulated) if deforms else {}),
            box={},
            rngs=nnx.Rngs(0),
        )

    params = nnx.state(nnx.eval_shape(make), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("deform_blocks", "pool_layer", "modulated", "added"),
    [
        ((0, 0, 0, -1), RoIAlign, False, 248_886),
        ((0, 0, 0, 3), RoIAlign, False, 248_886),
        ((0, 0, -1, -1), RoIAlign, False, 497_826),
        ((0, -1, -1, -1), RoIAlign, False, 580_842),
        ((0, 0, 0, -1), DeformRoIPool, False, 1_478_296),
        ((0, -1, -1, -1), DeformRoIPool, False, 1_810_252),
        ((0, -1, -1, -1), DeformRoIPool, True, 14_917_618),
    ],
)
def test_parameters_added_by_the_rows_of_the_papers_tables(
    deform_blocks, pool_layer, modulated, added
):
    regular = count((0, 0, 0, 0), RoIPool, False)
    assert count(deform_blocks, pool_layer, modulated) - regular == added


def test_deformed_blocks_are_the_last():
    """One of the last stage, as the first paper's smallest row."""
    one = count((0, 0, 0, 1), RoIAlign, False) - count((0, 0, 0, 0), RoIAlign, False)
    assert 3 * one == 248_886


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mimic": {"regions": "all"}}, ValueError, "`regions` is 'all'; expected one"),
        ({"mimic": {"reduction": "max"}}, ValueError, "`reduction` is 'max'; expected"),
        ({"mimic": {"count": 0}}, ValueError, "`count` is 0; expected at least 1"),
        (
            {"box": {"features": 8.0}},
            TypeError,
            "`features` is 8.0; expected an",
        ),
        ({"pool": {"output_size": 0}}, ValueError, "`output_size` is 0; expected"),
        (
            {"trunk": {"pixel_std": (1, 2)}},
            ValueError,
            "`pixel_std` is (1, 2); exp",
        ),
    ],
)
def test_wrong_arguments_are_named(options, error, message, untyped):
    with pytest.raises(error) as raised:
        nnx.eval_shape(lambda: make_detector(**options))
    assert str(raised.value).startswith(message)


def test_a_backbone_of_stride_32_is_refused():
    with pytest.raises(ValueError, match="one stride for c4 and c5"):
        nnx.eval_shape(lambda: make_detector({"output_stride": 32}))


def test_a_head_without_a_representation_cannot_mimic(untyped):
    class Head(nnx.Module):
        num_classes = 3

    with pytest.raises(TypeError, match="`head` is Head, which has no representation"):
        Mimic(Head(), rngs=nnx.Rngs(0))


def test_wrong_images_are_named():
    # Not through `features`, where the tests' type checker comes first.
    normalise = inspect.unwrap(Trunk.normalise)
    trunk = tiny_detector().trunk
    with pytest.raises(ValueError, match=r"`images` has shape \(1, 8, 8, 4\)"):
        normalise(trunk, jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"`sizes` has shape \(2, 2\)"):
        normalise(trunk, jnp.zeros((1, 8, 8, 3)), jnp.zeros((2, 2), jnp.int32))
