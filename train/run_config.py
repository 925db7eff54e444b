"""The configuration that a run wrote into its folder."""

import json
from pathlib import Path
from typing import Any

from train.config_dict import ConfigDict

_FILE = "config.json"


def config_path(workdir: Path) -> Path:
    """Returns where the run in a folder has its configuration."""
    return workdir / _FILE


def read_config(path: Path) -> ConfigDict:
    """Returns the configuration of a run.

    Args:
      path: Of its file, see `config_path`.

    Raises:
      OSError: There is none, or it cannot be read.
      ValueError: It is damaged.
    """
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
