"""What the preparation of a data set says while it goes on: a line, and a bar."""

import contextlib
import logging
from collections.abc import Iterator

from tqdm import tqdm

_log = logging.getLogger("train")


@contextlib.contextmanager
def preparing(what: str, images: int) -> Iterator[tqdm]:
    """Says what is prepared, and shows how far that is, in a terminal alone.

    Args:
      what: Is prepared.
      images: That it has.

    Yields:
      The bar, whose `update()` tells that an image is done.
    """
    _log.info("preparing %s: %d image%s", what, images, "s" * (images != 1))
    with tqdm(
        total=images, desc="preparing", unit=" images", disable=None, leave=False
    ) as bar:
        yield bar
