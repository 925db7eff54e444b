"""deform_conv2d refuses what does not fit, with a message that says why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deform_conv_case import random_case

from xla_ops import deform_conv, deform_conv2d

NAMES = ("x", "offset", "kernel", "mask", "bias")
OFFSET = "(2, 6, 7, G, 9, 2) = (N, P, Q, G, R*S, 2)"


def zeros(*shape, dtype="float32"):
    return jnp.zeros(shape, dtype)


# (changed arguments, error, what the message must contain)
BAD = [
    (dict(x=[[1.0]]), TypeError, "`x` is list; expected an array"),
    (dict(x=zeros(2, 6, 7, 4, dtype="int32")), TypeError, "`x` has dtype int32"),
    (dict(x=zeros(6, 7, 4)), ValueError, "`x` has shape (6, 7, 4); expected (N, H,"),
    (dict(x=zeros(2, 6, 7, 0)), ValueError, "expected C of at least 1"),
    (dict(x=zeros(2, 0, 7, 4)), ValueError, "expected H of at least 1"),
    (dict(x=zeros(2, 6, 7, 5)), ValueError, "expected (3, 3, 5, 6) = (R, S, C/"),
    (dict(x=zeros(3, 6, 7, 4)), ValueError, "expected (3, 6, 7, G, 9, 2)"),
    (dict(x=zeros(2, 6, 8, 4)), ValueError, "expected (2, 6, 8, G, 9, 2)"),
    (dict(kernel=None), TypeError, "`kernel` is NoneType; expected an array"),
    (dict(kernel=zeros(3, 3, 4, 6, 1)), ValueError, "expected (R, S, C/feature"),
    (dict(kernel=zeros(0, 3, 4, 6)), ValueError, "expected R of at least 1"),
    (dict(kernel=zeros(3, 3, 4, 0)), ValueError, "expected K of at least 1"),
    (dict(kernel=zeros(3, 3, 2, 6)), ValueError, "`kernel` has shape (3, 3, 2, 6)"),
    (dict(kernel=zeros(2, 3, 4, 6)), ValueError, "expected (2, 6, 7, G, 6, 2)"),
    (
        dict(kernel=zeros(3, 3, 4, 6, dtype="bfloat16")),
        TypeError,
        "`kernel` has dtype bfloat16; expected float32 as `x` has",
    ),
    (dict(offset=zeros(2, 6, 7, 18)), ValueError, f"(2, 6, 7, 18); expected {OFFSET}"),
    (dict(offset=zeros(2, 6, 7, 1, 9, 3)), ValueError, OFFSET),
    (dict(offset=zeros(2, 6, 7, 1, 8, 2)), ValueError, OFFSET),
    (
        dict(offset=zeros(2, 6, 7, 3, 9, 2)),
        ValueError,
        "G = 3 to be a divisor of the 4",
    ),
    (dict(offset=zeros(2, 6, 7, 0, 9, 2)), ValueError, "G = 0 to be a divisor"),
    (dict(offset=zeros(2, 6, 7, 1, 9, 2, dtype="int32")), TypeError, "dtype int32"),
    (dict(mask=zeros(2, 6, 7, 1, 9, 1)), ValueError, "`mask` has shape"),
    (dict(mask=zeros(2, 6, 7, 2, 9)), ValueError, "expected (2, 6, 7, 1, 9) = (N, P"),
    (dict(mask=zeros(2, 6, 7, 1, 9, dtype="bool")), TypeError, "`mask` has dtype bool"),
    (dict(bias=zeros(5)), ValueError, "`bias` has shape (5,); expected (6,) = (K)"),
    (dict(bias=zeros(1, 6)), ValueError, "`bias` has shape (1, 6)"),
    (dict(bias=zeros(6, dtype="float16")), TypeError, "`bias` has dtype float16"),
    (dict(strides=0), ValueError, "`strides` is 0; expected at least 1"),
    (dict(strides=(1, -1)), ValueError, "`strides` is -1; expected at least 1"),
    (dict(strides=(1, 1, 1)), ValueError, "`strides` is (1, 1, 1); expected an int"),
    (dict(strides=True), TypeError, "`strides` is True; expected an integer"),
    (dict(strides=2), ValueError, "expected (2, 3, 4, G, 9, 2)"),
    (dict(kernel_dilation=0), ValueError, "`kernel_dilation` is 0"),
    (dict(padding="SAME_LOWER"), ValueError, "`padding` is 'SAME_LOWER'; expected"),
    (dict(padding=-1), ValueError, "`padding` is -1; expected at least 0"),
    (dict(padding=((1, 1),)), ValueError, "`padding` is ((1, 1),); expected"),
    (dict(padding=((1, 1), (1, 1, 1))), ValueError, "`padding` is (1, 1, 1)"),
    (dict(padding=0), ValueError, "expected (2, 4, 5, G, 9, 2)"),
    (dict(feature_group_count=0), ValueError, "`feature_group_count` is 0"),
    (dict(feature_group_count=3), ValueError, "a divisor of the 4 channels of `x`"),
    (dict(feature_group_count=4), ValueError, "a divisor of the 6 output channels"),
    (dict(feature_group_count=2), ValueError, "expected (3, 3, 2, 6)"),
    (dict(implementation="cuda"), ValueError, "`implementation` is 'cuda'; expected"),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=lambda v: str(v)[:60])
def test_bad_arguments(changes, error, message):
    arguments = dict(zip(NAMES, random_case(bias=True), strict=True)) | changes
    with pytest.raises(error) as raised:
        deform_conv2d(**arguments)
    assert message in str(raised.value)
    # Also while tracing, before anything runs.
    arrays = {n: a for n, a in arguments.items() if isinstance(a, jax.Array)}
    rest = {n: a for n, a in arguments.items() if n not in arrays}
    with pytest.raises(error):
        jax.eval_shape(lambda a: deform_conv2d(**a, **rest), arrays)


def test_wide_offsets_beside_narrow_data(x64):
    x, offset, kernel, mask, _ = random_case()
    with pytest.raises(TypeError, match="`offset` has dtype float64; expected float32"):
        deform_conv2d(x, offset.astype(np.float64), kernel, mask)
    with pytest.raises(TypeError, match="`mask` has dtype float64; expected float32"):
        deform_conv2d(x, offset, kernel, mask.astype(np.float64))


@pytest.mark.parametrize("index", [1, 3])
def test_the_handler_checks_again(index):
    """The backstop under the Python checks."""
    operands = [*random_case()[:4]]
    operands[2] = operands[2][None]
    operands[index] = operands[index][:, :, :-1]
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: deform"):
        jax.block_until_ready(
            deform_conv._forward(
                *operands,
                strides=(1, 1),
                padding=(1, 1),
                dilation=(1, 1),
                groups=1,
                precision=None,
            )
        )
