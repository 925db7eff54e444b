"""Fields of a configuration that weights bring along: conventions of their owner.

A run takes them at its start from the file that `init_from` names, and keeps them in
its folder, since who resumes or evaluates it may not have that file any more.
"""

import copy
import json
import logging
from pathlib import Path
from typing import Any

from train.config_dict import ConfigDict
from train.run_config import tuples_of
from train.task import Task
from train.whole_file import write_whole

_FILE = "conventions.json"
_log = logging.getLogger("train")


def adopt(config: ConfigDict, task: Task) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns the configuration of a run that starts, with what its weights want.

    And these fields; it says which of them change.

    Raises:
      OSError: The file of the weights cannot be opened.
      ValueError: It cannot be read.
    """
    wanted = task.conventions(config)
    for path, value in wanted.items():
        if (given := _field(config, path)) != value:
            _log.info("init_from: `%s` is %s in place of %s", path, value, given)
    return _with_fields(config, wanted), wanted


def keep(fields: dict[str, Any], workdir: Path) -> None:
    """Writes what a run has adopted into its folder, in the place of what lies there.

    Raises:
      OSError: The file cannot be written.
    """
    path = workdir / _FILE
    if fields:
        write_whole(path, json.dumps(fields, indent=2) + "\n")
    else:
        path.unlink(missing_ok=True)


def kept(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Returns the configuration with what the run in a folder has adopted.

    Fields of another network are left out: its checkpoint will be refused.

    Raises:
      ValueError: The file is damaged.
    """
    path = workdir / _FILE
    if not path.exists():
        return config
    try:
        fields = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return _with_fields(
        config, {name: v for name, v in fields.items() if _has(config, name)}
    )


def _with_fields(config: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
    if not fields:
        return config
    config = copy.deepcopy(config)
    for path, value in fields.items():
        *sections, name = path.split(".")
        section: Any = config
        for key in sections:
            section = section[key]
        section[name] = tuples_of(value)
    return config


def _field(config: ConfigDict, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value[key]
    return value


def _has(config: ConfigDict, path: str) -> bool:
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, ConfigDict) or key not in value:
            return False
        value = value[key]
    return True
