"""DeepLab: labels, the loss of pixels, and the fixed upsampling."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcn_jax.segmentation import deeplab, pixel_head
from dcn_jax.segmentation.pixel_head import PixelHead
from tests.support.derivatives import EARLY, LATE, Kind, assert_agree, derivatives
from tests.support.tiny_detector import (
    make_deeplab,
    tiny_deeplab,
    tiny_label_batch,
)

KINDS = {
    "offset branch": Kind(
        ("trunk", "backbone", "layer4", 0, "conv2", "offset_conv", "kernel"), EARLY
    ),
    "reduction": Kind(("trunk", "neck", "reduction", "kernel"), EARLY),
    "score": Kind(("head", "score", "kernel"), LATE),
    "bias of the score": Kind(("head", "score", "bias"), LATE),
}
DEFORMED = {"deform_blocks": (0, 0, 0, -1)}


@pytest.mark.slow
def test_the_gradient_agrees_with_finite_differences(x64):
    results, _ = derivatives(
        lambda: make_deeplab(DEFORMED, param_dtype=jnp.float64),
        tiny_label_batch(),
        KINDS,
    )
    for derivative in results.values():
        assert_agree(derivative)


@pytest.mark.parametrize("factor", [2, 16])
def test_upsampling_is_the_transposed_convolution(x64, factor):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    centre = factor - 0.5
    ramp = 1 - np.abs(np.arange(2 * factor) - centre) / factor
    full = np.zeros((2, 3 * factor + factor, 4 * factor + factor, 5))
    for i, j in np.ndindex(3, 4):
        window = np.s_[:, i * factor :, j * factor :]
        part = full[window][:, : 2 * factor, : 2 * factor]
        part += ramp[None, :, None, None] * ramp[:, None] * x[:, i, j][:, None, None]
    half = factor // 2
    cropped = full[:, half : half + 3 * factor, half : half + 4 * factor]
    found = pixel_head.enlarge(jnp.asarray(x), factor)
    np.testing.assert_allclose(found, cropped, atol=1e-12)


def test_the_loss_is_the_mean_over_pixels_that_are_judged(x64):
    batch = tiny_label_batch()
    sizes = batch.sizes.at[1].set(jnp.asarray([30, 20], jnp.int32))
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(*batch.labels.shape, 4)))
    judged = np.asarray(batch.labels) != 255
    judged[1, 30:] = judged[1, :, 20:] = False
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(judged, batch.labels, 0).astype(jnp.int32)
    )
    np.testing.assert_allclose(
        deeplab.pixel_loss(logits, batch.labels, sizes),
        np.asarray(losses)[judged].mean(),
        rtol=1e-12,
    )
    nothing = jnp.full_like(batch.labels, 255)
    loss, gradient = jax.value_and_grad(deeplab.pixel_loss)(logits, nothing, sizes)
    assert loss == 0 and not gradient.any()


def test_padding_changes_no_label_and_no_loss():
    model = tiny_deeplab(DEFORMED)
    bias = model.trunk.neck.reduction.bias
    bias[...] = jnp.ones_like(bias[...])
    batch = tiny_label_batch()
    pads = ((0, 0), (0, 24), (0, 40))
    images = jnp.pad(batch.images, (*pads, (0, 0)), constant_values=200)
    padded = batch._replace(images=images, labels=jnp.pad(batch.labels, pads))

    @jax.jit
    def run(model, batch):
        loss = model.losses(batch, jax.random.key(0))
        return model.predict(batch.images, batch.sizes).labels, loss["class"]

    (exact, loss), (found, other) = run(model, batch), run(model, padded)
    assert exact.dtype == jnp.uint8 and exact.shape == (2, 40, 56)
    assert len(np.unique(exact)) > 1
    np.testing.assert_array_equal(found[:, :40, :56], exact)
    assert (found[:, 40:] == 255).all() and (found[:, :, 56:] == 255).all()
    np.testing.assert_allclose(other, loss, rtol=1e-5)


def test_the_loss_of_a_large_image_keeps_no_map_of_labels():
    """At most the logits, their gradient, and what lies between in one step."""
    shape = (1, 256, 512)
    logits = jax.ShapeDtypeStruct((*shape, 19), jnp.float32)
    labels = jax.ShapeDtypeStruct(shape, jnp.uint8)
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    step = jax.jit(jax.grad(deeplab.pixel_loss))
    used = step.lower(logits, labels, sizes).compile().memory_analysis()
    assert used.temp_size_in_bytes <= 2.1 * np.prod(logits.shape) * 4


def test_half_precision():
    model = tiny_deeplab(dtype=jnp.bfloat16)
    batch = tiny_label_batch()
    losses = jax.eval_shape(lambda m: m.losses(batch, jax.random.key(0)), model)
    assert losses["class"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 256}, "`num_classes` is 256; expected at most 255"),
        ({"strides": (16, 32)}, r"`strides` is \(16, 32\); expected one even number"),
        ({"strides": (3,)}, r"`strides` is \(3,\); expected one even number"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(in_features=8, num_classes=3, strides=(16,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        PixelHead(**(arguments | change))
