"""deform_conv2d refuses what does not fit, with a message that says why."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xla_ops
from tests.support.deform_conv import random_case
from xla_ops.deform_conv import primitives

# Without the type checks of the tests, as a user calls it.
deform_conv2d = inspect.unwrap(xla_ops.deform_conv2d)

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
    (dict(x=None), TypeError, "`x` is NoneType; expected an array"),
    (dict(x="x"), TypeError, "`x` is str; expected an array"),
    (dict(x=1.0), TypeError, "`x` is float; expected an array"),
    (dict(x=zeros()), ValueError, "`x` has shape (); expected (N, H, W, C)"),
    (dict(x=np.array("x")), TypeError, "`x` has dtype str"),
    (
        dict(x=np.ma.zeros((2, 6, 7, 4), np.float32)),
        TypeError,
        "`x` is a masked array; expected an array without a mask",
    ),
    (dict(x=np.array([None])), TypeError, "`x` has dtype object; expected float32"),
    (
        dict(x=zeros(2, 6, 7, 4, dtype="complex64")),
        TypeError,
        "`x` has dtype complex64",
    ),
    (
        dict(x=zeros(2, 6, 7, 4, dtype="float8_e4m3fn")),
        TypeError,
        "`x` has dtype float8_e4m3fn",
    ),
    (dict(x=zeros(2, 6, 7, 4, dtype="bool")), TypeError, "`x` has dtype bool"),
    (dict(x=zeros(2, 6, 7, 4, dtype="float16")), TypeError, "`kernel` has dtype float"),
    (dict(offset=None), TypeError, "`offset` is NoneType; expected an array"),
    (dict(offset=[0.0]), TypeError, "`offset` is list; expected an array"),
    (
        dict(offset=zeros(2, 6, 7, 1, 9, 2, dtype="complex64")),
        TypeError,
        "`offset` has dtype complex64",
    ),
    (dict(offset=zeros(0, 6, 7, 1, 9, 2)), ValueError, OFFSET),
    (dict(kernel="k"), TypeError, "`kernel` is str; expected an array"),
    (dict(kernel=zeros(3, 3, 4, 6, dtype="uint8")), TypeError, "`kernel` has dtype u"),
    (dict(kernel=zeros(7, 9, 4, 6), padding="VALID"), ValueError, "expected (2, 0, 0"),
    (dict(mask=1.0), TypeError, "`mask` is float; expected an array"),
    (dict(mask=zeros(1, 6, 7, 1, 9)), ValueError, "`mask` has shape (1, 6, 7, 1, 9)"),
    (dict(bias=0.0), TypeError, "`bias` is float; expected an array"),
    (dict(bias=zeros(6, dtype="int32")), TypeError, "`bias` has dtype int32"),
    (dict(bias=zeros()), ValueError, "`bias` has shape (); expected (6,)"),
    (dict(strides=1.0), TypeError, "`strides` is 1.0; expected an integer"),
    (dict(strides="1"), TypeError, "`strides` is '1'; expected an integer"),
    (dict(strides=None), TypeError, "`strides` is None; expected an integer"),
    (dict(strides=2**31), ValueError, "`strides` is 2147483648; expected less than"),
    (dict(strides=2**70), ValueError, "`strides` is 118059162071741130"),
    (dict(strides=np.array([1, 1])), TypeError, "`strides` is array([1, 1]); expected"),
    (dict(kernel_dilation=1.0), TypeError, "`kernel_dilation` is 1.0; expected an int"),
    (dict(kernel_dilation=(1, -2)), ValueError, "`kernel_dilation` is -2; expected at"),
    (
        dict(kernel_dilation=2**40, padding=2**30),
        ValueError,
        "`kernel_dilation` is 1099511627776; expected less than 2147483648",
    ),
    (dict(padding=None), TypeError, "`padding` is None; expected an integer"),
    (dict(padding=1.5), TypeError, "`padding` is 1.5; expected an integer"),
    (dict(padding="same"), ValueError, "`padding` is 'same'; expected"),
    (dict(padding=("SAME", "SAME")), TypeError, "`padding` is 'SAME'; expected an int"),
    (dict(padding=((1, 1), (1, -1))), ValueError, "`padding` is -1; expected at least"),
    (dict(padding=2**62), ValueError, "`padding` is 4611686018427387904; expected les"),
    (
        dict(padding=2**30),
        ValueError,
        "`padding` is 1073741824, which makes 2147483654 rows or columns of 6 with "
        "`kernel_dilation` 1; expected less than 2147483648",
    ),
    (
        dict(kernel_dilation=(1, 2**30)),
        ValueError,
        "`padding` is 'SAME', which makes 2147483655 rows or columns of 7 with "
        "`kernel_dilation` (1, 1073741824); expected less",
    ),
    (dict(feature_group_count=-1), ValueError, "`feature_group_count` is -1; expected"),
    (dict(feature_group_count=1.0), TypeError, "`feature_group_count` is 1.0; expect"),
    (dict(feature_group_count=None), TypeError, "`feature_group_count` is None; expe"),
    (dict(precision="nonsense"), ValueError, "`precision` is 'nonsense'; expected wha"),
    (dict(precision=3), ValueError, "`precision` is 3; expected what"),
    (dict(precision=("high",)), ValueError, "`precision` is ('high',); expected"),
    (dict(precision=["high", "high"]), ValueError, "`precision` is ['high', 'high'];"),
    (
        dict(precision="nonsense", implementation="reference"),
        ValueError,
        "`precision` is 'nonsense'; expected",
    ),
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


@pytest.mark.parametrize(
    "name", ["strides", "padding", "kernel_dilation", "feature_group_count"]
)
def test_a_traced_number_is_refused(name):
    case = random_case()[:4]
    with pytest.raises(TypeError, match=f"`{name}` is JitTracer.*expected an integer"):
        jax.jit(lambda value: deform_conv2d(*case, **{name: value}))(1)


def test_numbers_of_numpy_and_jax_are_accepted():
    case = random_case()[:4]
    expected = deform_conv2d(*case)
    for one in (np.int64(1), np.uint8(1), jnp.int32(1), [1, np.int32(1)]):
        y = deform_conv2d(*case, strides=one, kernel_dilation=one)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    "precision",
    [
        "high",
        "tensorfloat32",
        ("high", "default"),
        jax.lax.Precision.HIGHEST,
        (jax.lax.Precision.HIGH, jax.lax.Precision.DEFAULT),
        jax.lax.DotAlgorithmPreset.F32_F32_F32,
    ],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["ffi", "reference"])
def test_precisions_of_jax_are_accepted(precision, implementation):
    case = random_case()[:4]
    options = dict(precision=precision, implementation=implementation)
    y = jax.eval_shape(lambda *a: deform_conv2d(*a, **options), *case)
    assert y.shape == (2, 6, 7, 6)


def shapes_of(height, width, channels, taps=9):
    """A layer that nobody can hold in memory."""
    struct = jax.ShapeDtypeStruct
    side = {1: 1, 9: 3}[taps]
    return (
        struct((1, height, width, channels), "float32"),
        struct((1, height, width, 1, taps, 2), "float32"),
        struct((side, side, channels, 8), "float32"),
    )


@pytest.mark.parametrize("height, width", [(2**31, 1), (46341, 46341), (2**40, 2**40)])
def test_a_map_of_too_many_pixels(height, width):
    with pytest.raises(ValueError, match=r"`x` has shape .* less than 2147483648"):
        jax.eval_shape(deform_conv2d, *shapes_of(height, width, 1, taps=1))


def test_a_map_of_more_elements_than_32_bits_count():
    """Its columns, too, which nobody stores."""
    arguments = shapes_of(46000, 46000, 256)
    y = jax.eval_shape(deform_conv2d, *arguments)
    assert y.shape == (1, 46000, 46000, 8)
    gradients = jax.eval_shape(
        jax.grad(lambda *a: deform_conv2d(*a).sum(), (0, 1, 2)), *arguments
    )
    assert [g.shape for g in gradients] == [a.shape for a in arguments]


@pytest.mark.parametrize("index", [1, 3])
def test_the_handler_checks_again(index):
    """The backstop under the Python checks."""
    operands = [*random_case()[:4]]
    operands[2] = operands[2][None]
    operands[index] = operands[index][:, :, :-1]
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: deform"):
        jax.block_until_ready(
            primitives._forward(
                *operands,
                strides=(1, 1),
                padding=(1, 1),
                dilation=(1, 1),
                groups=1,
                precision=None,
            )
        )
