"""Everything beside XLA's own convolution, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dcn_jax.modules import spatial_conv as module
from dcn_jax.modules.spatial_conv import spatial_conv
from tests.support.collectives import moves

FORMS = {
    "3x3": dict(padding=1),
    "stride 2": dict(padding=1, strides=2),
    "dilation 2": dict(padding=2, kernel_dilation=2),
    "uneven": dict(
        padding=((2, 0), (1, 3)), strides=(1, 3), kernel_dilation=(2, 1), taps=(2, 3)
    ),
    "same": dict(padding="SAME", strides=2, taps=(3, 2)),
    "valid": dict(padding="VALID"),
}


@pytest.fixture(autouse=True)
def small_too(monkeypatch):
    """Few features of small maps take the products too."""
    monkeypatch.setattr(module, "_MIN_FEATURES", 1)
    monkeypatch.setattr(module, "_MIN_PRODUCT", 1)


def layer(form, **options):
    """`(x, kernel) -> y` of a layer without a bias."""
    options = dict(form) | options
    graph = nnx.graphdef(
        nnx.Conv(
            3,
            5,
            options.pop("taps", (3, 3)),
            use_bias=False,
            rngs=nnx.Rngs(0),
            **options,
        )
    )

    def run(x, kernel):
        return nnx.merge(graph, {"kernel": nnx.Param(kernel)})(x)

    return run


def operands(form, images=2):
    rng = np.random.default_rng(0)
    shapes = (images, 7, 8, 3), (*form.get("taps", (3, 3)), 3, 5)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_it_and_its_derivatives_are_those_of_the_plain_convolution(x64, form):
    x, kernel = operands(form)
    along = jax.tree.map(jnp.cos, (x, kernel))
    results = []
    for conv in (spatial_conv, jax.lax.conv_general_dilated):
        run = layer(form, conv_general_dilated=conv)

        def energy(x, kernel, run=run):
            return (jnp.sin(run(x, kernel)) ** 2).sum()

        gradient = jax.grad(energy, (0, 1))
        results.append(
            [
                run(x, kernel),
                jax.jvp(run, (x, kernel), along),
                jax.jit(gradient)(x, kernel),
                # Forward over reverse, and reverse over reverse.
                jax.jit(lambda *x, f=gradient: jax.jvp(f, x, along))(x, kernel),
                jax.jit(
                    jax.grad(
                        lambda *x, f=gradient: sum((g**2).sum() for g in f(*x)), (0, 1)
                    )
                )(x, kernel),
                jax.vmap(jax.grad(energy, 1), (0, None))(x[:, None], kernel),
            ]
        )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), *results)


def test_the_gradient_of_the_kernel_is_a_product_for_each_tap():
    """What this is for, and not so in groups."""
    x, kernel = operands({})
    for groups, convolutions in ((1, 0), (3, 1)):
        run = layer({"padding": 1}, conv_general_dilated=spatial_conv)
        if groups != 1:
            run = functools.partial(_grouped, groups=groups)
            kernel = jnp.ones((3, 3, 1, 6))
        gradient = jax.jit(jax.grad(lambda k, f=run: (f(x, k) ** 2).sum()))
        text = gradient.lower(kernel).compile().as_text()
        # One is the forward pass.
        assert text.count(" convolution(") == 1 + convolutions
        assert (" dot(" in text) == (groups == 1)


def _grouped(x, kernel, groups):
    return spatial_conv(
        x,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=(1, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_it_keeps_no_copies_for_the_taps():
    """The map, and what one tap reads of it; nine would be 9 of them."""
    x, kernel = jnp.ones((1, 96, 96, 32)), jnp.ones((3, 3, 32, 8))
    run = functools.partial(_grouped, groups=1)
    gradient = jax.jit(jax.grad(lambda k: (run(x, k) ** 2).sum()))
    plan = gradient.lower(kernel).compile().memory_analysis()
    assert plan.temp_size_in_bytes < 4 * x.nbytes


def test_the_backward_pass_keeps_the_operands_alone():
    x, kernel = operands({})
    run = layer({"padding": 1}, conv_general_dilated=spatial_conv)
    _, pull_back = jax.vjp(jax.jit(run), x, kernel)
    # Beside where the taps are.
    kept = {leaf.shape for leaf in jax.tree.leaves(pull_back) if leaf.size > 9}
    assert kept == {x.shape, kernel.shape}


@pytest.mark.parametrize(
    "other",
    [{"input_dilation": 2}, {"preferred_element_type": jnp.float64}],
    ids=["input_dilation", "preferred_element_type"],
)
def test_other_arguments_are_laxs(x64, other):
    x, kernel = (jnp.asarray(a, jnp.float32) for a in operands({}))
    found, expected = (
        layer({"padding": 1}, conv_general_dilated=conv, **other)(x, kernel)
        for conv in (spatial_conv, jax.lax.conv_general_dilated)
    )
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_mesh_of_explicit_types(x64):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    x, kernel = operands({}, images=8)
    run = layer({"padding": 1}, conv_general_dilated=spatial_conv)
    gradient = jax.grad(lambda x, k: (run(x, k) ** 2).sum(), (0, 1))
    alone = gradient(x, kernel)
    with jax.set_mesh(mesh):
        over_devices = jax.jit(gradient)(
            jax.device_put(x, PartitionSpec("data")),
            jax.device_put(kernel, PartitionSpec()),
        )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12),
        jax.device_get(over_devices),
        jax.device_get(alone),
    )


def test_devices_that_split_the_batch_add_gradients_alone(x64):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    everywhere, split = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",))
    )
    x, kernel = operands({}, images=8)
    run = layer({"padding": 1}, conv_general_dilated=spatial_conv)
    gradient = jax.grad(lambda x, k: (run(x, k) ** 2).sum(), (0, 1))
    over_devices = jax.jit(
        gradient, in_shardings=(split, everywhere), out_shardings=(split, everywhere)
    )
    assert not moves(over_devices.lower(x, kernel).compile().as_text())
    alone = gradient(x, kernel)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12),
        over_devices(x, kernel),
        alone,
    )
    by_hand = jax.shard_map(
        gradient,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=(PartitionSpec("data"), PartitionSpec()),
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12),
        jax.jit(by_hand)(x, kernel),
        alone,
    )


def test_a_symbolic_size_is_exported(monkeypatch):
    monkeypatch.setattr(module, "_MIN_PRODUCT", 10_000)
    (batch,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((batch, 7, 8, 3), jnp.float32)
    run = jax.jit(layer({"padding": 1}, conv_general_dilated=spatial_conv))
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
    assert jax.export.export(run)(x, kernel).out_avals[0].shape == (batch, 7, 8, 5)
