"""Position-sensitive RoI pooling against vectors of torchvision and MSRA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.golden import GOLDEN
from tests.support.roi import Images
from xla_ops import deform_ps_roi_pool, ps_roi_align, ps_roi_pool

FILES = sorted(
    p.stem
    for pattern in ("ps_roi_align_*", "psroi_pool_*", "deform_psroi_pool_*")
    for p in GOLDEN.glob(f"{pattern}.npz")
)
CHANNELS_LAST = (0, 2, 3, 1)


def test_all_files_are_here():
    assert len(FILES) == 16


def operator_of(file, golden):
    """The operator with its settings, as a function of (features, rois, ...)."""
    settings = dict(spatial_scale=float(golden["spatial_scale"]))
    if file.startswith("deform"):
        size = golden["cotangent"].shape[-1]
        assert size == golden["pooled_size"]
        return functools.partial(
            deform_ps_roi_pool,
            output_size=size,
            group_size=int(golden["group_size"]),
            part_size=int(golden["part_size"]),
            samples_per_part=int(golden["sample_per_part"]),
            offset_scale=float(golden["trans_std"]),
            **settings,
        )
    if file.startswith("psroi_pool"):
        settings["output_size"] = int(golden["pooled_size"])
        settings["group_size"] = int(golden["group_size"])
        return functools.partial(ps_roi_pool, **settings)
    settings["output_size"] = tuple(golden["output_size"].tolist())
    ratio = max(int(golden["sampling_ratio"]), 0)
    return functools.partial(ps_roi_align, sampling_ratio=ratio, **settings)


def ours_of_trans(trans):
    """[rois, 2 * classes, p, q] with x first as [rois, p, q, classes, 2], y first."""
    rois, channels, *parts = trans.shape
    trans = trans.reshape(rois, channels // 2, 2, *parts)[:, :, ::-1]
    return trans.transpose(0, 3, 4, 1, 2)


@pytest.mark.parametrize("bits", ["f32", "f64"])
@pytest.mark.parametrize("implementation", ["ffi", "reference"])
@pytest.mark.parametrize("file", FILES)
def test_golden(file, implementation, bits):
    golden = np.load(GOLDEN / f"{file}.npz")
    images = Images(golden["rois"][:, 0], golden["input"].shape[0])
    moving = {"features": golden["input"].transpose(CHANNELS_LAST)}
    if "trans" in golden:
        moving["offset"] = images.pack(ours_of_trans(golden["trans"]))
    if "mask" in golden:
        moving["mask"] = images.pack(golden["mask"][:, 0])
    rois = images.pack(golden["rois"][:, 1:])
    cotangent = images.pack(golden["cotangent"].transpose(CHANNELS_LAST))
    operator = functools.partial(
        operator_of(file, golden), implementation=implementation
    )

    with jax.enable_x64(bits == "f64"):
        dtype = jnp.float64 if bits == "f64" else jnp.float32
        moving, rois, cotangent = jax.tree.map(
            lambda x: jnp.asarray(x, dtype), (moving, rois, cotangent)
        )

        def pool(features, **others):
            return operator(features, rois, **others)

        @jax.jit
        def run(moving):
            y, pull_back = jax.vjp(lambda moving: pool(**moving), moving)
            return y, pull_back(cotangent)[0]

        y, gradients = run(moving)

    def close(name, got, want, tolerance):
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error < tolerance, (name, error)

    output = golden[f"output_{bits}"].transpose(CHANNELS_LAST)
    close("output", images.unpack(y), output, 1e-9 if bits == "f64" else 1e-5)
    tolerance = 1e-9 if bits == "f64" else 1e-4
    want = golden[f"grad_input_{bits}"].transpose(CHANNELS_LAST)
    close("grad_input", np.asarray(gradients["features"]), want, tolerance)
    if "trans" in golden:
        got = images.unpack(gradients["offset"])
        close("grad_trans", got, ours_of_trans(golden[f"grad_trans_{bits}"]), tolerance)
        numeric = ours_of_trans(golden["grad_trans_numeric"])
        close("grad_trans", got, numeric, 2e-6 if bits == "f64" else 1e-4)
    if "mask" in golden:
        want = golden[f"grad_mask_{bits}"][:, 0]
        close("grad_mask", images.unpack(gradients["mask"]), want, tolerance)
