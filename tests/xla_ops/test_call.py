"""Loading the kernels, choosing the implementation, export."""

import functools
import re
import sys
import warnings

import jax
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.backend import PLATFORM
from tests.support.comparison import relative_error
from tests.support.deform_conv import BACKWARD_CALLS, FORWARD_CALLS, random_case
from xla_ops import backends, deform_conv2d, roi_align, roi_pool
from xla_ops._jax import libraries, lowering

TARGETS = [f"dcn_jax.deform_conv2d.{n}" for n in FORWARD_CALLS + BACKWARD_CALLS]
LIBRARY = libraries.library_modules()[PLATFORM]
ALLOWED = [export.DisabledSafetyCheck.custom_call(name) for name in TARGETS]
SMALL = dict(batch=8, size=(3, 4), channels=2, features=2)


def gradients(*arguments):
    return jax.grad(lambda *a: deform_conv2d(*a).sum(), (0, 1, 2, 3))(*arguments)


def fresh(implementation=None):
    """A function that jax has not compiled yet."""
    return jax.jit(lambda *a: deform_conv2d(*a, implementation=implementation))


@pytest.fixture(scope="module")
def case():
    return random_case(**SMALL)[:4]


def test_backends():
    assert backends()[0] == "cpu"
    assert set(TARGETS) <= set(libraries.targets[PLATFORM])


def test_missing_library_names_the_build_command(case, monkeypatch):
    monkeypatch.delitem(libraries.targets, PLATFORM)
    monkeypatch.setitem(libraries.load_errors, PLATFORM, f"No module named '{LIBRARY}'")
    for implementation in (None, "ffi"):
        with pytest.raises(
            RuntimeError, match=rf"{LIBRARY}'\. Build .* `scripts/build\.sh`"
        ):
            fresh(implementation)(*case)
    fresh("reference")(*case)
    assert PLATFORM not in backends()


def test_library_without_the_handler(case, monkeypatch):
    monkeypatch.setitem(libraries.targets, PLATFORM, {})
    with pytest.raises(RuntimeError, match=rf"has no {TARGETS[0]}"):
        fresh()(*case)


@pytest.mark.parametrize("installed", [(0, 0), (1, 3)])
def test_library_for_another_ffi_is_refused(installed, monkeypatch):
    """Registering it would leave the process without that backend."""
    monkeypatch.setattr(libraries, "framework_ffi_version", lambda: installed)
    monkeypatch.delattr(jax.ffi, "register_ffi_target")
    expected = rf"built for XLA FFI 0\.\d+, but jaxlib has {installed[0]}\."
    with pytest.raises(ImportError, match=expected):
        libraries.load_library(LIBRARY, PLATFORM)


def test_ffi_version_is_read():
    assert libraries.framework_ffi_version() >= (0, 3)


def test_environment_chooses_the_implementation(case, monkeypatch):
    def text(**options):
        function = jax.jit(lambda *a: deform_conv2d(*a, **options))
        return function.lower(*case).as_text()

    assert TARGETS[0] in text()
    monkeypatch.setenv("DCN_JAX_IMPLEMENTATION", "reference")
    assert TARGETS[0] not in text()
    assert TARGETS[0] in text(implementation="ffi")
    monkeypatch.setenv("DCN_JAX_IMPLEMENTATION", "fast")
    with pytest.raises(ValueError, match="DCN_JAX_IMPLEMENTATION is 'fast'; expected"):
        text()


def test_platform_without_kernels(case):
    """It takes the reference, with one warning; "ffi" raises."""
    lowering.warn_of_reference.cache_clear()
    with pytest.warns(UserWarning, match="no kernels for tpu") as caught:
        exported = export.export(fresh(), platforms=["tpu"])(*case)
    assert len(caught) == 1
    assert "custom_call" not in exported.mlir_module()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.export(jax.jit(gradients), platforms=["tpu"])(*case)
        # Nor is there a warning where the reference was asked for.
        lowering.warn_of_reference.cache_clear()
        export.export(fresh("reference"), platforms=["tpu"])(*case)
    with pytest.raises(NotImplementedError, match=r"no dcn_jax.* is built for tpu"):
        export.export(fresh("ffi"), platforms=["tpu"])(*case)


@pytest.mark.devices(8)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_platform_without_kernels_over_devices(kind, case):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    specs = (P("data"), P("data"), P(), P("data"))
    arguments = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(case, specs, strict=True)
    ]
    with jax.set_mesh(mesh), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export.export(jax.jit(gradients), platforms=["tpu"])(*arguments)
    assert exported.nr_devices == 8
    assert "custom_call @dcn_jax" not in exported.mlir_module()


def test_export_and_reload(case):
    pytest.importorskip("flatbuffers")
    exported = export.export(jax.jit(gradients), disabled_checks=ALLOWED)(*case)
    again = export.deserialize(exported.serialize())
    for a, b in zip(again.call(*case), gradients(*case), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.devices(8)
def test_export_over_devices(case):
    pytest.importorskip("flatbuffers")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shardings = [NamedSharding(mesh, s) for s in (P("data"), P("data"), P(), P("data"))]
    function = jax.jit(gradients, in_shardings=shardings)
    exported = export.export(function, disabled_checks=ALLOWED)(*case)
    again = export.deserialize(exported.serialize())
    compiled = jax.jit(again.call, in_shardings=shardings).lower(*case).compile()
    assert not re.search(r"all-gather(-start)?\(", compiled.as_text())
    for a, b in zip(
        compiled(*jax.device_put(case, tuple(shardings))), gradients(*case), strict=True
    ):
        assert relative_error(a, b) < 1e-6


@pytest.mark.parametrize("pool", [roi_align, roi_pool])
def test_export_roi_pooling_with_symbolic_sizes(pool):
    settings = dict(output_size=2, spatial_scale=0.5)
    pool = functools.partial(pool, **settings)
    n, b, h, w = export.symbolic_shape("n, b, h, w")
    shapes = [
        jax.ShapeDtypeStruct(shape, np.float32) for shape in [(n, h, w, 3), (n, b, 4)]
    ]
    allowed = [
        export.DisabledSafetyCheck.custom_call(f"dcn_jax.{name}.fwd")
        for name in ("roi_pool", "max_roi_pool")
    ]
    exported = export.export(jax.jit(pool), disabled_checks=allowed)(*shapes)
    rng = np.random.default_rng(0)
    for images, boxes, size in [(1, 4, (3, 4)), (5, 2, (6, 2))]:
        x = rng.standard_normal((images, *size, 3)).astype(np.float32)
        rois = rng.uniform(0, 10, (images, boxes, 4)).astype(np.float32)
        np.testing.assert_array_equal(exported.call(x, rois), pool(x, rois))


def test_export_with_symbolic_batch(case):
    """For any batch size and any map."""
    n, h, w = export.symbolic_shape("n, h, w")
    x, offset, kernel, mask = case
    shapes = [
        jax.ShapeDtypeStruct((n, h, w, *x.shape[3:]), x.dtype),
        jax.ShapeDtypeStruct((n, h, w, *offset.shape[3:]), x.dtype),
        jax.ShapeDtypeStruct(kernel.shape, x.dtype),
        jax.ShapeDtypeStruct((n, h, w, *mask.shape[3:]), x.dtype),
    ]
    exported = export.export(jax.jit(gradients), disabled_checks=ALLOWED)(*shapes)
    for batch, size in [(1, (3, 4)), (5, (6, 2))]:
        arguments = random_case(**SMALL | {"batch": batch, "size": size})[:4]
        for a, b in zip(exported.call(*arguments), gradients(*arguments), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "implementation", [None, pytest.param("reference", marks=pytest.mark.slow)]
)
def test_export_of_padding_same_with_a_stride(implementation):
    """How much is padded depends on the size; one program serves all."""
    strides = (2, 3)

    def step(x, offset, kernel):
        def loss(*arguments):
            y = deform_conv2d(
                *arguments, strides=strides, implementation=implementation
            )
            return (y * y).sum(), y

        return jax.grad(loss, (0, 1, 2), has_aux=True)(x, offset, kernel)

    h, w = export.symbolic_shape("h, w")
    rows, columns = -(-h // 2), -(-w // 3)
    shapes = [
        jax.ShapeDtypeStruct(shape, np.float32)
        for shape in [(2, h, w, 2), (2, rows, columns, 1, 6, 2), (3, 2, 2, 3)]
    ]
    exported = export.export(jax.jit(step), disabled_checks=ALLOWED)(*shapes)
    rng = np.random.default_rng(0)
    for height, width in [(4, 7), (5, 6), (1, 8)]:
        output = (2, -(-height // 2), -(-width // 3), 1, 6, 2)
        sizes = [(2, height, width, 2), output, (3, 2, 2, 3)]
        arguments = [rng.standard_normal(size).astype(np.float32) for size in sizes]
        actual, expected = exported.call(*arguments), jax.jit(step)(*arguments)
        for a, b in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            assert relative_error(a, b) < 1e-6


def test_sources_that_hide_an_installed_package_are_told(tmp_path, monkeypatch):
    assert libraries.where_it_is("_cpu") == ""
    for folder in ("other", "site-packages"):
        (tmp_path / folder / "xla_ops").mkdir(parents=True)
        (tmp_path / folder / "xla_ops" / "__init__.py").touch()
    installed = tmp_path / "site-packages"
    (installed / "xla_ops" / "_cpu.cpython-311-x86_64-linux-gnu.so").touch()
    folders = ["", str(tmp_path / "other"), str(installed)]
    monkeypatch.setattr(sys, "path", folders)
    told = libraries.where_it_is("_cpu")
    assert f"hide the package that is installed in {installed}:" in told
    assert libraries.where_it_is("_cuda") == ""
