"""Arrays of torch's layout, beside those that the golden vectors are tested with."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import dcn_jax
from dcn_jax import (
    from_torch_kernel,
    from_torch_mask,
    from_torch_offset,
    to_torch_kernel,
    to_torch_mask,
    to_torch_offset,
)
from tests.support.deform_conv import GoldenCase, golden_names
from tests.support.golden import GOLDEN
from xla_ops import deform_conv2d, sampling_positions


@pytest.fixture(autouse=True)
def untyped(monkeypatch):
    """As for users, whose calls no type checker looks at."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def stored(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", golden_names())
def test_golden_arrays_come_over_and_go_back(name):
    theirs = stored(name)
    _, offset, kernel, mask, _ = GoldenCase(name, "float32").arguments
    size = kernel.shape[:2]
    np.testing.assert_array_equal(from_torch_offset(theirs["offset"], size), offset)
    np.testing.assert_array_equal(from_torch_kernel(theirs["weight"]), kernel)
    np.testing.assert_array_equal(to_torch_offset(offset), theirs["offset"])
    np.testing.assert_array_equal(to_torch_kernel(kernel), theirs["weight"])
    if mask is not None:
        np.testing.assert_array_equal(from_torch_mask(theirs["mask"], size), mask)
        np.testing.assert_array_equal(to_torch_mask(mask), theirs["mask"])


class Tensor:
    """What of torch's tensors is used: no more than arrays' protocols, and `detach`."""

    def __init__(self, values, *, needs_gradient=False):
        self._values, self._needs_gradient = values, needs_gradient

    def detach(self):
        return Tensor(self._values)

    def __dlpack__(self, **options):
        if self._needs_gradient:
            raise BufferError("Can't export tensors that require gradient")
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()


class Convertible:
    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype)


def test_kinds_of_arrays():
    offset = np.arange(36 * 6, dtype=np.float32).reshape(36, 2, 3)
    expected = from_torch_offset(offset, 3)
    assert isinstance(expected, np.ndarray) and np.shares_memory(expected, offset)
    assert expected.shape == (2, 3, 2, 9, 2)
    # Offset group, tap and then (dy, dx) of one pixel.
    assert expected[1, 2, 1, 4, 1] == offset[18 + 2 * 4 + 1, 1, 2]
    tensor = Tensor(offset.copy(), needs_gradient=True)
    for given in (jnp.asarray(offset), tensor, Convertible(offset)):
        converted = from_torch_offset(given, (3, 3))
        assert isinstance(converted, jax.Array)
        np.testing.assert_array_equal(converted, expected)
    traced = jax.eval_shape(lambda o: to_torch_offset(from_torch_offset(o, 3)), offset)
    assert traced.shape == offset.shape


def test_no_memory_is_shared_with_a_tensor():
    values = np.ones((1, 1, 1, 1), np.float32)
    kernel = from_torch_kernel(Tensor(values))
    values[:] = 2
    assert kernel.item() == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: from_torch_offset(np.ones((1, 27, 4, 5)), 3),
            ValueError,
            r"`offset` has shape \(1, 27, 4, 5\); expected \(..., 18 \* G, P, Q\)",
        ),
        (
            lambda: from_torch_mask(np.ones((1, 0, 4, 5)), 3),
            ValueError,
            r"`mask` has shape \(1, 0, 4, 5\); expected \(..., 9 \* G, P, Q\)",
        ),
        (lambda: from_torch_mask(np.ones((9, 4)), 3), ValueError, "`mask` has shape"),
        (lambda: from_torch_offset([1.0], 3), TypeError, "`offset` is list; expected"),
        (
            lambda: from_torch_offset(np.ones((18, 4, 5)), 0),
            ValueError,
            "`kernel_size` is 0",
        ),
        (lambda: from_torch_kernel(np.ones(3)), ValueError, r"expected \(K, C/groups"),
        (lambda: to_torch_kernel(np.ones(3)), ValueError, r"expected \(R, S, C/gro"),
        (lambda: to_torch_mask(np.ones((4, 5, 9))), ValueError, "`mask` has shape"),
        (
            lambda: to_torch_offset(np.ones((4, 5, 1, 9, 3))),
            ValueError,
            "`offset` has shape",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def converted_by(message: str, arrays: dict) -> dict:
    """The arguments of a call after the lines that its error gives."""
    names = {"jnp": jnp, "dcn_jax": dcn_jax, **arrays}
    exec(message.split("; from torch's layout: ")[1], names)
    return {name: names[name] for name in arrays}


OURS = dict(
    x=jnp.zeros((2, 5, 6, 4)),
    offset=jnp.zeros((2, 5, 6, 2, 9, 2)),
    kernel=jnp.zeros((3, 3, 4, 7)),
    mask=jnp.zeros((2, 5, 6, 2, 9)),
)
THEIRS = dict(
    x=jnp.zeros((2, 4, 5, 6)),
    offset=to_torch_offset(OURS["offset"]),
    kernel=to_torch_kernel(OURS["kernel"]),
    mask=to_torch_mask(OURS["mask"]),
)


@pytest.mark.parametrize(
    "names", [["x"], ["kernel"], ["x", "kernel"], ["offset"], ["mask"], list(OURS)]
)
def test_the_operator_says_how_to_convert(names):
    arrays = {**OURS, **{name: THEIRS[name] for name in names}}
    for _ in names:
        with pytest.raises(ValueError, match="from torch's layout: ") as caught:
            jax.eval_shape(lambda arrays: deform_conv2d(**arrays), arrays)
        arrays = converted_by(str(caught.value), arrays)
        if all(arrays[name].shape == OURS[name].shape for name in OURS):
            break
    run = jax.eval_shape(lambda arrays: deform_conv2d(**arrays), arrays)
    assert run.shape == (2, 5, 6, 7)


def test_the_positions_say_how_to_convert():
    window = dict(input_size=(5, 6), kernel_size=3)
    with pytest.raises(ValueError, match="from torch's layout: ") as caught:
        sampling_positions(THEIRS["offset"], **window)
    arrays = converted_by(str(caught.value), {"offset": THEIRS["offset"]})
    assert arrays["offset"].shape == OURS["offset"].shape


@pytest.mark.parametrize(
    "changes",
    [
        dict(x=jnp.zeros((2, 5, 6, 3))),
        dict(offset=jnp.zeros((2, 5, 6, 9, 2))),
        dict(offset=jnp.zeros((2, 35, 5, 6))),
        dict(mask=jnp.zeros((2, 17, 5, 6))),
    ],
)
def test_other_shapes_are_not_taken_for_torchs(changes):
    with pytest.raises(ValueError, match="has shape") as caught:
        jax.eval_shape(lambda arrays: deform_conv2d(**arrays), {**OURS, **changes})
    assert "torch" not in str(caught.value)


def test_only_what_is_sure_is_to_be_converted():
    """The map fits in torch's layout alone, beside the kernel in either."""
    square = dict(x=jnp.zeros((2, 3, 5, 6)), kernel=jnp.zeros((3, 3, 3, 3)))
    arrays = {**OURS, **square}
    with pytest.raises(ValueError, match="from torch's layout: x = ") as caught:
        jax.eval_shape(lambda arrays: deform_conv2d(**arrays), arrays)
    assert "kernel =" not in str(caught.value)
