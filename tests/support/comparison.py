"""How far a result is from the expected one."""

import numpy as np


def relative_error(actual, expected):
    """Largest difference, over the largest magnitude expected."""
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape
    if not expected.size:
        return 0.0
    difference = np.abs(actual - expected).max()
    return difference / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
