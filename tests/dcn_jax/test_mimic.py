import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcn_jax.detection import mimic
from dcn_jax.detection.box_head import BoxTargets
from dcn_jax.detection.mimic import crop_patches
from tests.support.tiny_detector import tiny_batch, tiny_detector

# One compilation in place of one for each operation.
mimic_losses = jax.jit(
    mimic.mimic_losses, static_argnames=("reduction", "detach_teacher")
)
mimic_targets = jax.jit(
    mimic.mimic_targets,
    static_argnames=("regions", "count", "include_ground_truth"),
)


def sampled_rois():
    """Two images: three positives (one a ground-truth box) of six; none of six."""
    labels = jnp.asarray([[2, 1, 3, 0, 0, 0], [0] * 6], jnp.int32)
    return BoxTargets(
        rois=jnp.zeros((2, 6, 4)),
        labels=labels,
        valid=jnp.asarray([[True] * 5 + [False], [True] * 4 + [False] * 2]),
        deltas=jnp.zeros((2, 6, 4)),
        is_ground_truth=jnp.asarray([[False, False, True, *[False] * 3], [False] * 6]),
        matched=jnp.zeros((2, 6), jnp.int32),
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"regions": "fg"}, ({0, 1, 2}, set())),
        ({"regions": "fg", "include_ground_truth": False}, ({0, 1}, set())),
        ({"regions": "bg"}, ({3, 4}, {0, 1, 2, 3})),
        ({"regions": "fg_bg"}, ({0, 1, 2, 3, 4}, {0, 1, 2, 3})),
    ],
)
def test_regions(options, expected):
    targets = mimic_targets(jax.random.key(0), sampled_rois(), count=8, **options)
    assert targets.index.shape == targets.valid.shape == (2, 8)
    for i in range(2):
        chosen = targets.index[i][targets.valid[i]].tolist()
        assert len(chosen) == len(set(chosen)) and set(chosen) == expected[i]


def test_choice_is_random_by_key():
    choose = jax.jit(lambda key: mimic_targets(key, sampled_rois(), count=1).index[0])
    assert len({int(choose(jax.random.key(i))[0]) for i in range(20)}) == 3


def test_crops_are_the_pixels_of_the_roi():
    image = jnp.arange(20.0 * 30).reshape(1, 20, 30, 1) * jnp.ones((1, 1, 1, 3))
    rois = jnp.asarray([[[4, 6, 12, 10], [0, 0, 30, 20]]], jnp.float32)
    sizes = jnp.asarray([[20, 30]], jnp.int32)
    patches = crop_patches(image, rois, sizes, crop_size=4)
    # 8 x 4 pixels in 4 x 4: means over pairs of columns.
    expected = np.asarray(image)[0, 6:10, 4:12, 0].reshape(4, 4, 2).mean(2)
    np.testing.assert_allclose(patches[0, 0, ..., 0], expected, rtol=1e-5)
    assert patches.shape == (1, 2, 4, 4, 3)


def features(seed, shape=(2, 3, 5)):
    return jax.random.normal(jax.random.key(seed), shape)


def test_cosine_is_summed_over_rois_and_averaged_over_images():
    student, teacher = features(0), features(1)
    valid = jnp.asarray([[True, True, False], [True, False, False]])
    args = student, teacher, jnp.zeros((2, 3, 4)), jnp.ones((2, 3), jnp.int32), valid
    cosine = np.sum(student * teacher, -1) / (
        np.linalg.norm(student, axis=-1) * np.linalg.norm(teacher, axis=-1)
    )
    total = (1 - cosine)[np.asarray(valid)].sum()
    losses = mimic_losses(*args)
    np.testing.assert_allclose(losses["mimic_cos"], total / 2, rtol=1e-5)
    np.testing.assert_allclose(losses["mimic_class"], np.log(4), rtol=1e-6)
    losses = mimic_losses(*args, reduction="mean")
    np.testing.assert_allclose(losses["mimic_cos"], total / 3, rtol=1e-5)


@pytest.mark.parametrize("detach", [False, True])
def test_teacher_learns_unless_detached(detach):
    valid = jnp.asarray([[True, True, False]] * 2)

    def cosine(student, teacher):
        return mimic_losses(
            student,
            teacher,
            jnp.zeros((2, 3, 4)),
            jnp.zeros((2, 3), jnp.int32),
            valid,
            detach_teacher=detach,
        )["mimic_cos"]

    of_student, of_teacher = jax.grad(cosine, (0, 1))(features(0), features(1))
    assert of_student[:, :2].all() and not of_student[:, 2].any()
    assert of_teacher[:, :2].all() != detach and not of_teacher[:, 2].any()


def test_features_without_direction_are_finite():
    def total(student, teacher, valid):
        return sum(
            mimic_losses(
                student,
                teacher,
                jnp.zeros((2, 3, 4)),
                jnp.zeros((2, 3), jnp.int32),
                valid,
            ).values()
        )

    zeros = jnp.zeros((2, 3, 5))
    for valid in (jnp.ones((2, 3), bool), jnp.zeros((2, 3), bool)):
        value, grads = jax.value_and_grad(total, (0, 1))(zeros, zeros, valid)
        assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in grads)


def test_a_crop_of_the_whole_image_has_the_features_of_the_image():
    """Backbone, reduction, pooling and head are shared, and the patch is the image."""
    model = tiny_detector(mimic={})
    batch = tiny_batch(images=1, height=32, width=32)
    whole = jnp.asarray([[[0, 0, 32, 32]]], jnp.float32)

    @jax.jit
    def both(model):
        features = model.features(batch.images, batch.sizes)
        alone = model.roi.represent(features, whole)
        crops = model.mimic.represent_crops(model.trunk, model.roi, features, whole)
        return alone, crops

    # 32 x 32 pixels in 32 x 32: 2 x 2 samples blur a little, so a smooth image.
    ramp = jnp.linspace(0, 255, 32)[None, :, None, None]
    batch = batch._replace(images=jnp.broadcast_to(ramp, (1, 32, 32, 3)))
    alone, crop = both(model)
    np.testing.assert_allclose(crop, alone, atol=2e-2 * np.abs(alone).max())
