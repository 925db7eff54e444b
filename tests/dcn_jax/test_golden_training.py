"""torchvision's detectors in training: the same losses, the same gradients.

In float64, where no ReLU turns over by rounding. The samplers take every candidate, so
that chance has no say.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.detection.records import Batch
from dcn_jax.weights.detector import dotted
from dcn_jax.weights.detector_file import translate
from dcn_jax.weights.layouts import Axes
from dcn_jax.weights.names import TORCHVISION
from tests.support.golden import GOLDEN
from tests.support.golden_detectors import canvas, config, golden_detector

FILES = (
    # What they have, the third has too, but for deformable layers.
    pytest.param("faster_rcnn_fpn", marks=pytest.mark.slow),
    pytest.param("faster_rcnn_fpn_dcn", marks=pytest.mark.slow),
    "mask_rcnn_fpn",
)
LOSSES = {
    "rpn_class": "objectness",
    "rpn_box": "rpn_box_reg",
    "class": "classifier",
    "box": "box_reg",
    "mask": "mask",
}


def batch_of(fields):
    """Both images with their ground truth; a mask covers the whole canvas."""
    images, sizes = canvas(fields)
    boxes, labels = (
        jnp.asarray(np.stack([fields[f"target_{k}_{i}"] for i in range(2)]))
        for k in ("boxes", "labels")
    )
    valid = jnp.ones(labels.shape, bool)
    batch = Batch(images, sizes, boxes, labels.astype(jnp.int32), valid)
    if "target_masks_0" not in fields:
        return batch
    side = max(images.shape[1:3])
    masks = np.zeros((*labels.shape, side, side), np.uint8)
    for i in range(2):
        given = fields[f"target_masks_{i}"]
        masks[i, :, : given.shape[1], : given.shape[2]] = given
    window = jnp.float32([0, 0, side, side])
    windows = jnp.broadcast_to(window, (*labels.shape, 4))
    return batch._replace(masks=jnp.asarray(masks), mask_windows=windows)


@pytest.fixture(scope="module", params=FILES)
def trained(request, tmp_path_factory):
    """The file's fields, our losses, and the gradient by path."""
    with jax.enable_x64(True):
        fields, model = golden_detector(
            request.param,
            tmp_path_factory.mktemp("golden"),
            training=True,
            param_dtype=jnp.float64,
        )
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        @jax.jit
        def run(params, batch):
            def total(params):
                model = nnx.merge(graph, params, rest)
                losses = model.losses(batch, jax.random.key(0))
                return sum(losses.values()), losses

            gradient, losses = jax.grad(total, has_aux=True)(params)
            return losses, gradient

        losses, gradient = run(params, batch_of(fields))
        flat = nnx.to_flat_state(gradient)
        return (
            request.param,
            fields,
            {name: float(loss) for name, loss in losses.items()},
            {dotted(path): np.asarray(leaf[...]) for path, leaf in flat},
        )


def test_losses(trained):
    _, fields, losses, _ = trained
    expected = {
        ours: fields[f"loss/loss_{theirs}_f64"]
        for ours, theirs in LOSSES.items()
        if f"loss/loss_{theirs}_f64" in fields
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-4, err_msg=name)


def test_gradients(trained):
    name, fields, _, gradient = trained
    with np.load(GOLDEN / "detectors" / f"{name}.npz") as file:
        theirs = {
            k.removeprefix("grad/"): file[k]
            for k in file.files
            if k.startswith("grad/")
        }
    axes = Axes(config(fields)["channels"], True, False)
    expected, _, rest = translate(theirs, TORCHVISION, axes)
    assert rest == [] and len(expected) == len(theirs) > 5
    for path, value in expected.items():
        bound = 1e-3 * np.abs(value).max()
        np.testing.assert_allclose(
            gradient[path], value, rtol=0, atol=bound, err_msg=path
        )
