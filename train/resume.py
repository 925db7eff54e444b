"""What differs where a run goes on with another configuration than it had."""

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from dcn_jax.quoting import quoted

_log = logging.getLogger("train")

# More are counted instead of listed.
_LISTED = 10
_ABSENT = object()
# Fields that change how fast a run is, and nothing else.
_SPEED = {"data.workers"}


def say_changes(
    was: Mapping[str, Any], now: Mapping[str, Any], *, steps_were: int, steps: int
) -> None:
    """Logs which fields of the configuration a run changes as it goes on, if any.

    The step counter and what was learned are kept. The rate, the images of a batch and
    their order are those of the configuration now, at that step: a run with another
    batch size does not go on at the same image.

    Args:
      was: The configuration in the checkpoint.
      now: The configuration of the run, as `ConfigDict.to_dict` returns it.
      steps_were: Length of the run that wrote the checkpoint.
      steps: Length of the run now.
    """
    # What JSON makes of tuples must not look like a difference.
    before, after = dict(_fields(was)), dict(_fields(json.loads(json.dumps(now))))
    changes = [
        f"`{field}` was {_shown(before, field)}, is {_shown(after, field)}"
        for field in sorted((before.keys() | after.keys()) - _SPEED)
        if before.get(field, _ABSENT) != after.get(field, _ABSENT)
    ]
    if steps_were != steps:
        changes.insert(0, f"the run had {steps_were} steps, has {steps}")
    if changes:
        left_out = len(changes) - _LISTED
        more = [f"and {left_out} more"] if left_out > 0 else []
        _log.warning(
            "WARNING: not as in the checkpoint: %s", "; ".join(changes[:_LISTED] + more)
        )


def _fields(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every field."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(fields: Mapping[str, Any], field: str) -> str:
    return quoted(fields[field], 40) if field in fields else "absent"
