"""OpenCV, imported when an image is read, resized or drawn."""

from typing import Any


def opencv() -> Any:
    """Returns the module `cv2`, which nobody else in this package needs.

    Raises:
      ImportError: It is not installed; the message says how to.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ImportError(
            "images are read, resized and drawn with OpenCV, which is not installed: "
            "pip install 'dcn-jax[detect]'"
        ) from error
    return cv2
