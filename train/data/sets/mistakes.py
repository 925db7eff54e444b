"""What is wrong with a data set of the user's, all at once, on one line."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dcn_jax.quoting import one_line
from train.data.progress import preparing

# Of the mistakes in a data set, so many are written out.
SHOWN = 10
# A decoded image of `max_pixels` and its decoder's memory are large.
_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 64

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mistakes(ValueError):
    """Several things that are wrong with one item of a data set.

    Attributes:
      errors: One each.
    """

    def __init__(self, errors: Sequence[ValueError | OSError]):
        super().__init__(one_line("; ".join(map(str, errors[:SHOWN])), 1500))
        self.errors = list(errors)


def listed(mistakes: Sequence[str], count: int, what: str) -> str:
    """The first of `count` mistakes, and how many more there are, on one line."""
    if count == 1:
        return mistakes[0]
    text = f"{count} {what}: {'; '.join(mistakes[:SHOWN])}"
    return f"{text}; and {count - SHOWN} more" if count > SHOWN else text


def read_all(
    items: Sequence[Item],
    read: Callable[[Item], Result],
    refusal: Callable[[Sequence[ValueError | OSError]], Exception],
    *,
    what: str,
) -> Iterator[tuple[int, Result]]:
    """Reads items in threads; yields place and result of each, in order.

    What is wrong is looked for to the end, and said at once.

    Args:
      items: What is read, one for each image.
      read: Reads one; raises ValueError or OSError, or `Mistakes`.
      refusal: Makes of all that was raised what is raised at the end.
      what: Names the items, to say that they are prepared.

    Raises:
      Exception: The refusal.
    """
    errors: list[ValueError | OSError] = []

    def guarded(item: Item) -> Result | ValueError | OSError:
        try:
            return read(item)
        except (ValueError, OSError) as error:
            return error

    with preparing(what, len(items)) as bar, ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(items), _CHUNK):
            results = list(pool.map(guarded, items[start : start + _CHUNK]))
            for place, result in enumerate(results, start):
                bar.update()
                if isinstance(result, Mistakes):
                    errors += result.errors
                elif isinstance(result, ValueError | OSError):
                    errors.append(result)
                elif not errors:
                    yield place, result
    if errors:
        raise refusal(errors)


def refusal(
    folder: Path,
    errors: Sequence[ValueError | OSError],
    what: str,
    short_names: Mapping[str, str] | None = None,
) -> ValueError | FileNotFoundError:
    """Makes one exception of what is wrong with the files of a folder.

    Args:
      folder: Its files are named relative to it where several are wrong.
      errors: One or more; where all say that a file is missing, the result does.
      what: Names them, as in "3 broken images".
      short_names: Longer text -> shorter, for other paths.
    """
    text = str(errors[0])
    if len(errors) > 1:
        names = {f"{folder}{os.sep}": "", **(short_names or {})}
        texts = []
        for error in errors[:SHOWN]:
            shortened = str(error)
            for long, short in names.items():
                shortened = shortened.replace(long, short)
            texts.append(one_line(shortened, 250))
        text = f"{one_line(str(folder), 300)}: {listed(texts, len(errors), what)}"
    missing = all(isinstance(error, FileNotFoundError) for error in errors)
    return FileNotFoundError(text) if missing else ValueError(text)
