"""The configuration that a run wrote into its folder."""

import json
from pathlib import Path
from typing import Any

from train.config_dict import ConfigDict

_FILE = "config.json"


def read_config(workdir: Path) -> ConfigDict:
    """Returns the configuration of the run in a folder.

    Raises:
      OSError: There is none, or it cannot be read.
      ValueError: It is damaged.
    """
    path = workdir / _FILE
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is damaged: expected an object of fields")
    return ConfigDict(tuples_of(fields))


def tuples_of(value: Any) -> Any:
    """Returns what was read from JSON, its lists as the tuples that fields are."""
    if isinstance(value, dict):
        return {name: tuples_of(inner) for name, inner in value.items()}
    return tuple(map(tuples_of, value)) if isinstance(value, list) else value
