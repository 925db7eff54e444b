"""A user's own models: Linen, NNX with remat, layers that run twice or in a scan."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from dcn_jax import modules
from dcn_jax.explain import (
    bin_locations,
    convolutions,
    effective_receptive_field,
    map_stride,
    offset_fields,
    sampling_locations,
)
from dcn_jax.explain.models import copy_of
from dcn_jax.modules import linen

ROIS = jnp.asarray([[[1.0, 2.0, 6.0, 7.0]]])
IMAGE = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8, 2), np.float32))


class LinenModel(nn.Module):
    def setup(self):
        self.deform = linen.DeformConv(4, 3)
        self.regular = nn.Conv(3, (3, 3), strides=2, padding=1)
        self.pool = linen.DeformRoIPool(2, 0.5, hidden_features=4)

    def __call__(self, x):
        return self.regular(nn.relu(self.deform(x)))

    def rois(self, x):
        return self.pool(self(x), ROIS).mean((2, 3))


class NNXModel(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.deform = modules.DeformConv(2, 4, 3, rngs=rngs)
        self.regular = nnx.Conv(4, 3, (3, 3), strides=2, padding=1, rngs=rngs)
        self.pool = modules.DeformRoIPool(
            3, 2, spatial_scale=0.5, hidden_features=4, rngs=rngs
        )

    def __call__(self, x):
        deform = nnx.remat(lambda layer, x: layer(x))
        return self.regular(nnx.relu(deform(self.deform, x)))

    def rois(self, x):
        return self.pool(self(x), ROIS).mean((2, 3))


def call(model, x):
    return model(x)


def of_rois(model, x):
    return model.rois(x)


@pytest.fixture(scope="module")
def models():
    """The two kinds with equal weights, offsets among them."""
    graph, state = nnx.split(nnx.eval_shape(NNXModel))
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda v: jnp.asarray(0.3 * rng.standard_normal(v.shape), v.dtype), state
    )
    linen_model = LinenModel().bind({"params": nnx.to_pure_dict(state)})
    return nnx.merge(graph, state), linen_model


def explain(model):
    """Everything that is pure, and the model's own output, in one program."""

    def run(image):
        return (
            sampling_locations(model, call, image, [(1, 2)], layers=2, gradient=True),
            bin_locations(model, of_rois, image, [(0,)], gradient=True),
            effective_receptive_field(model, call, image, [(1, 2), (3, 3)]),
            call(copy_of(model), image[None]),
        )

    return jax.device_get(jax.jit(run)(IMAGE))


def test_linen_and_nnx_models_are_explained_alike(models):
    nnx_model, linen_model = models
    one, other = explain(nnx_model), explain(linen_model)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other
    )
    points, bins, field, output = other
    assert points.position.shape == (1, 81, 2)
    assert np.abs(points.gradient).max() > 0 and np.abs(bins.gradient).max() > 0
    np.testing.assert_array_equal(field.response, output[0, [1, 3], [2, 3]])
    names = ["deform", "regular"]
    for model in models:
        assert [c.name for c in convolutions(model, call, IMAGE)] == names


def test_linen_variables_stay_as_they_were():
    layer = linen.DeformConv(4, 3)
    variables = layer.init(jax.random.key(0), IMAGE[None])
    assert set(variables) == {"params"}
    _, sown = layer.apply(variables, IMAGE[None], mutable=["intermediates"])
    (samples,) = sown["intermediates"]["samples"]
    assert samples["offset"].shape == (1, 8, 8, 1, 9, 2)
    with pytest.raises(ValueError, match="`model` is a DeformConv without variables"):
        convolutions(layer, call, IMAGE)


@nnx.split_rngs(splits=2)
@nnx.vmap
def stack(rngs):
    return nnx.Conv(2, 2, (3, 3), rngs=rngs)


class Twice(nnx.Module):
    """A layer that runs at two sizes, one that runs in a scan, one of one axis."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.shared = modules.DeformConv(2, 2, 3, rngs=rngs)
        self.stack = stack(nnx.Rngs(1))
        self.line = nnx.Conv(2, 2, (3,), rngs=rngs)
        self.last = modules.DeformConv(2, 2, 3, rngs=rngs)

    def __call__(self, x):
        x = self.shared(x)
        return self.shared(self.line(x)[:, ::2, ::2])

    def scanned(self, x):
        run = nnx.scan(
            lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
        )
        return run(x, self.stack)


def run_shapes(*args, **kwargs):
    """The errors of a trace, without a program."""
    model, *args = args
    return jax.eval_shape(
        lambda m: inspect.unwrap(sampling_locations)(m, *args, **kwargs).position, model
    )


def test_calls_of_a_layer_are_told_apart():
    model = nnx.eval_shape(Twice)
    calls = convolutions(model, call, IMAGE)
    assert [(c.name, c.input_size) for c in calls] == [
        ("shared", (8, 8)),
        ("shared", (4, 4)),
    ]
    names = ["shared", "shared"]
    assert run_shapes(model, call, IMAGE, [(3, 3)], layers=names).shape == (1, 81, 2)
    with pytest.raises(ValueError, match=r"has 'shared'; .* before shared, which"):
        run_shapes(model, call, IMAGE, [(3, 3)], layers=[*names, "shared"])
    with pytest.raises(ValueError, match="`layers`: stack is run several"):
        run_shapes(model, lambda m, x: m.scanned(x), IMAGE, [(3, 3)], layers=1)


def of_carry(x, layer):
    return layer(x)


def repeats(model, x):
    """A scan that runs one layer."""
    run = nnx.scan(of_carry, in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=3)
    return run(x, model.shared)


def shares(model, x):
    run = nnx.vmap(of_carry, in_axes=(0, None))
    return run(jnp.stack([x, x]), model.shared).sum(0)


def maps(model, x):
    return jax.vmap(lambda x: model.shared(x[None])[0])(x)


def spreads(model, x):
    """A vmap over layers."""
    return nnx.vmap(of_carry, in_axes=(None, 0))(x, model.stack).sum(0)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (repeats, "`layers`: shared runs inside of a transformation"),
        (shares, "`call` has an nnx transformation, .* runs one layer several times"),
        (maps, "`layers`: shared runs inside of a transformation"),
        (spreads, "`layers`: stack is run several times, or is several layers"),
    ],
)
def test_a_layer_that_a_transformation_repeats_is_refused(run, message):
    model = nnx.eval_shape(Twice)
    with pytest.raises(ValueError, match=message):
        run_shapes(model, run, IMAGE, [(3, 3)], layers=1)
    # Gradients by pixels need no record, and layers after it are followed.
    jax.eval_shape(
        lambda m: inspect.unwrap(effective_receptive_field)(m, run, IMAGE, [(3, 3)]),
        model,
    )
    if run is not shares:
        after = run_shapes(
            *(model, lambda m, x: m.last(run(m, x)), IMAGE, [(3, 3)]), layers=1
        )
        assert after.shape == (1, 9, 2)


@pytest.mark.parametrize("run", [shares, maps])
def test_offsets_of_a_layer_that_a_transformation_repeats_are_refused(run):
    with pytest.raises(ValueError, match="expected a pass"):
        jax.eval_shape(
            lambda m: inspect.unwrap(offset_fields)(m, lambda m: run(m, IMAGE[None])),
            nnx.eval_shape(Twice),
        )


class Body(nn.Module):
    """A layer as `nn.scan` takes it."""

    @nn.compact
    def __call__(self, x, _):
        return linen.DeformConv(2, 3, name="conv")(x), None


class Lifted(nn.Module):
    """A layer, or several, that a transformation of Linen runs, and one after it."""

    transformation: str

    @nn.compact
    def __call__(self, x):
        own = dict(variable_axes={"params": 0}, split_rngs={"params": True})
        shared = dict(variable_broadcast="params", split_rngs={"params": False})
        lifted = {
            "remat": lambda: nn.remat(Body),
            "jit": lambda: nn.jit(Body),
            "scan": lambda: nn.scan(Body, **own, length=2),
            "shared scan": lambda: nn.scan(Body, **shared, length=3),
            "vmap": lambda: nn.vmap(Body, **own, in_axes=None, axis_size=2),
        }[self.transformation]()
        x, _ = lifted(name="body")(x, None)
        if self.transformation == "vmap":
            x = x.sum(0)
        return linen.DeformConv(2, 3, name="last")(x)


@pytest.mark.parametrize(
    ("transformation", "message"),
    [
        ("remat", None),
        ("jit", None),
        ("scan", r"`layers`: body\.conv is run several times, or is several layers"),
        ("shared scan", r"`layers`: body\.conv runs inside of a transformation"),
        ("vmap", r"`layers`: body\.conv is run several times, or is several layers"),
    ],
)
def test_transformations_of_linen(transformation, message):
    module = Lifted(transformation)
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGE[None])

    def shapes(layers):
        def find(variables):
            model = module.bind({"params": variables["params"]})
            return inspect.unwrap(sampling_locations)(
                *(model, call, IMAGE, [(3, 3)]), layers=layers, gradient=True
            )

        return jax.eval_shape(find, variables)

    assert shapes(1).gradient.shape == (1, 9, 2)
    if message is None:
        assert shapes(2).gradient.shape == (1, 81, 2)
    else:
        with pytest.raises(ValueError, match=message):
            shapes(2)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (3, ValueError, "`layers` is 3; expected at most .* are deform, regular"),
        (0, ValueError, "`layers` is 0; expected at least 1"),
        ("deform", TypeError, "`layers` is 'deform'; expected a number, or a seq"),
        (["pool"], ValueError, "`layers` has 'pool'; expected convolutions .* deform"),
        ([], ValueError, "`layers` is empty"),
        (["regular", "regular"], ValueError, "before regular, which are deform"),
    ],
)
def test_layers_that_are_not_there(models, layers, error, message):
    with pytest.raises(error, match=message):
        run_shapes(models[0], call, IMAGE, [(0, 0)], layers=layers)


def test_networks_that_cannot_be_followed(models):
    dense = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`layers` is 1; .* which are none"):
        run_shapes(dense, call, IMAGE, [(0, 0)], layers=1)
    with pytest.raises(ValueError, match=r"expected a map \[1, P, Q, F\]"):
        run_shapes(models[0], of_rois, IMAGE, [(0,)])
    circular = nnx.Conv(2, 2, (3, 3), padding="CIRCULAR", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="has padding 'CIRCULAR'"):
        run_shapes(circular, call, IMAGE, [(0, 0)], layers=1)
    with pytest.raises(ValueError, match=r"regular makes .* \(3, 4\)"):
        run_shapes(models[0], lambda m, x: m(x)[:, 1:], IMAGE, [(0, 0)], layers=1)


def test_strides_of_maps():
    assert map_stride((800, 1216), (50, 76)) == 16
    assert map_stride((65, 65), (5, 5)) == 16
    assert map_stride((7, 7), (7, 7)) == map_stride((1, 1), (1, 1)) == 1
    with pytest.raises(ValueError, match=r"`coarse` is \(5, 3\); expected \(8, 8\) ov"):
        map_stride((8, 8), (5, 3))
