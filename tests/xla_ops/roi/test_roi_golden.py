"""RoI pooling against vectors of torchvision and mmcv."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.golden import GOLDEN
from tests.support.roi import Images
from xla_ops import deform_roi_pool, roi_align

FILES = sorted(
    [p.stem for p in GOLDEN.glob("roi_align_*.npz")]
    + [p.stem for p in GOLDEN.glob("deform_roi_pool_*.npz")]
)
CHANNELS_LAST = (0, 2, 3, 1)


def test_all_files_are_here():
    assert len(FILES) == 13


@pytest.mark.parametrize("bits", ["f32", "f64"])
@pytest.mark.parametrize("implementation", ["ffi", "reference"])
@pytest.mark.parametrize("file", FILES)
def test_golden(file, implementation, bits):
    golden = np.load(GOLDEN / f"{file}.npz")
    images = Images(golden["rois"][:, 0], golden["input"].shape[0])
    settings = dict(
        output_size=tuple(golden["output_size"].tolist()),
        spatial_scale=float(golden["spatial_scale"]),
        sampling_ratio=max(int(golden["sampling_ratio"]), 0),
        implementation=implementation,
    )
    moving = {"input": golden["input"].transpose(CHANNELS_LAST)}
    if "offset" in golden:
        # mmcv holds x first.
        offset = golden["offset"][:, ::-1].transpose(CHANNELS_LAST)
        moving["offset"] = images.pack(offset)
    if "mask" in golden:
        moving["mask"] = images.pack(golden["mask"][:, 0])
    rois = images.pack(golden["rois"][:, 1:])
    cotangent = images.pack(golden["cotangent"].transpose(CHANNELS_LAST))

    with jax.enable_x64(bits == "f64"):
        dtype = jnp.float64 if bits == "f64" else jnp.float32
        moving, rois, cotangent = jax.tree.map(
            lambda x: jnp.asarray(x, dtype), (moving, rois, cotangent)
        )

        @jax.jit
        def run(moving):
            def pool(input, offset=None, mask=None):
                if "aligned" in golden:
                    aligned = bool(golden["aligned"])
                    return roi_align(input, rois, aligned=aligned, **settings)
                scale = float(golden["gamma"])
                return deform_roi_pool(
                    input, rois, offset, mask, offset_scale=scale, **settings
                )

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
    close("grad_input", np.asarray(gradients["input"]), want, tolerance)
    if "offset" in golden:
        numeric = golden["grad_offset_numeric"][:, ::-1].transpose(CHANNELS_LAST)
        got = images.unpack(gradients["offset"])
        close("grad_offset", got, numeric, 1e-7 if bits == "f64" else 1e-4)
        # The flag lets one entry pass that is off by 6e-7.
        peer = golden["grad_offset_f64"]
        agrees = (
            np.abs(peer - golden["grad_offset_numeric"]) < 1e-8 * np.abs(peer).max()
        )
        exact = golden["grad_offset_peer_is_exact"] & agrees
        assert exact.mean() > 0.75
        exact = exact[:, ::-1].transpose(CHANNELS_LAST)
        peer = golden[f"grad_offset_{bits}"][:, ::-1].transpose(CHANNELS_LAST)
        close("grad_offset", got[exact], peer[exact], tolerance)
    if "mask" in golden:
        want = golden[f"grad_mask_{bits}"][:, 0]
        close("grad_mask", images.unpack(gradients["mask"]), want, tolerance)
