"""RoI pooling and nms over several devices: equal values, no communication."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.roi import OUTPUT_SIZE, SCALES, random_case
from xla_ops import deform_roi_pool, nms

pytestmark = pytest.mark.devices(8)

BATCH = P("data")
COLLECTIVES = re.compile(r" (all-\w+|collective-\w+|reduce-scatter)(-start)?\(")
KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])


@pytest.fixture(scope="module")
def case():
    case = random_case(batch=8, num_boxes=3, channels=4)
    return {name: case[name] for name in case if name != "cotangent"}


def step(case):
    """Pooled values, the gradients of all that has one, and the best bins' boxes."""

    def loss(moving):
        y = deform_roi_pool(
            **case | moving, output_size=OUTPUT_SIZE, spatial_scale=SCALES
        )
        return jnp.square(y).sum(), y

    moving = {name: case[name] for name in ("features", "offset", "mask")}
    gradients, y = jax.grad(loss, has_aux=True)(moving)
    scores = y.mean((2, 3, 4))
    kept = nms(case["rois"], scores, iou_threshold=0.5, max_outputs=2)
    return gradients, y, kept


@pytest.fixture(scope="module")
def expected(case):
    return jax.jit(step)(case)


def compile_and_run(function, case):
    compiled = jax.jit(function).lower(case).compile()
    text = compiled.as_text()
    calls = re.findall(r'custom_call_target="dcn_jax\.([\w.]+)"', text)
    return COLLECTIVES.findall(text), sorted(calls), compiled(case)


def assert_equal(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@KINDS
def test_data_parallel(kind, case, expected):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    case = jax.device_put(case, NamedSharding(mesh, BATCH))
    with jax.set_mesh(mesh):
        collectives, calls, actual = compile_and_run(step, case)
    assert collectives == []
    assert calls == ["nms", "roi_pool.bwd", "roi_pool.fwd"]
    assert_equal(actual, expected)
    for x in jax.tree.leaves(actual):
        assert x.sharding.shard_shape(x.shape)[0] == 1


def test_reference_on_an_explicit_mesh(case, expected):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    case = jax.device_put(case, NamedSharding(mesh, BATCH))

    def run(case):
        y = deform_roi_pool(
            **case,
            output_size=OUTPUT_SIZE,
            spatial_scale=SCALES,
            implementation="reference",
        )
        kept = nms(
            case["rois"],
            y.mean((2, 3, 4)),
            iou_threshold=0.5,
            max_outputs=2,
            implementation="reference",
        )
        return y, kept

    with jax.set_mesh(mesh):
        actual = jax.jit(run)(case)
    assert_equal(actual, expected[1:])


@KINDS
def test_vmap_over_the_batch(kind, case, expected):
    """Images mapped one by one stay on their devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    case = jax.device_put(case, NamedSharding(mesh, BATCH))

    def mapped(case):
        one = jax.tree.map(lambda x: x[None], case)
        return jax.tree.map(lambda x: x[0], step(one))

    with jax.set_mesh(mesh):
        collectives, _, actual = compile_and_run(jax.vmap(mapped), case)
    assert collectives == []
    assert_equal(actual, expected)


@KINDS
def test_whole_maps_are_right(kind, case, expected):
    """Where only the RoIs are split, the result is the same."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    split = {name: NamedSharding(mesh, BATCH) for name in case}
    split["features"] = NamedSharding(mesh, P(None, None, None, "model"))
    case = {name: jax.device_put(case[name], split[name]) for name in case}
    with jax.set_mesh(mesh):
        _, calls, actual = compile_and_run(step, case)
    assert calls == ["nms", "roi_pool.bwd", "roi_pool.fwd"]
    assert_equal(actual, expected)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma, case, expected):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=BATCH, out_specs=BATCH, check_vma=check_vma
    )(step)
    collectives, _, actual = compile_and_run(mapped, case)
    assert collectives == []
    assert_equal(actual, expected)
