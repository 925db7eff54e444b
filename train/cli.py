"""What the command lines share: flags, and one clear line for a user's mistake."""

import ast
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from dcn_jax.quoting import one_line, quoted
from train import flag_help, interrupt
from train.config_dict import ConfigDict
from train.run_config import config_path, read_config
from train.task import Task
from train.tasks import TASKS


class _ConfigFile(ConfigFileFlagParser):
    """Loads a configuration; raises what ml_collections keeps back until it is read.

    Of a run's folder it may be the config.json.
    """

    def parse(self, path: str) -> ConfigDict:
        if path.endswith(".json"):
            return read_config(Path(path))
        config = super().parse(path)
        if isinstance(config, ConfigDict):
            return config
        # Raises the OSError that stands in the place of a file that was not found.
        getattr(config, "name", None)
        raise ValueError(
            f"`get_config` returned {type(config).__name__}; expected a ConfigDict."
        )


_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: FILE.py, FILE.py:ARG or the config.json of a run's folder, which is "
    "the default where --workdir has one. --config.FIELD=VALUE overrides a field.",
    lock_config=True,
)
flags.FLAGS["config"].parser = _ConfigFile("config")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default runs/<config.name>."
)
_TRACEBACK = flags.DEFINE_bool(
    "traceback", False, "Show where an error was raised, not only what it says."
)


def config() -> ConfigDict:
    """Returns the configuration of the command line, locked."""
    return _CONFIG.value


def workdir() -> Path:
    """Returns the folder of the run."""
    return Path(os.path.expanduser(_WORKDIR.value or f"runs/{config().name}"))


def run(
    main: Callable[[list[str], Task], None], tasks: Mapping[str, Task] = TASKS
) -> None:
    """Parses the flags and calls `main` with the remaining arguments and the task.

    Mistakes that a user can mend (ValueError, TypeError, OSError) end the program
    with status 1 and one line on stderr; Ctrl-C ends it without one; other exceptions
    show their traceback.

    Args:
      main: The program.
      tasks: Those that the configuration's field `task` may name.
    """
    # A user reads the run's lines, not those of every library beneath it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # What they log as errors they also raise.
    absl_logging.set_verbosity(absl_logging.FATAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("train")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    if {"--help", "-help", "-h", "--helpshort"} & set(sys.argv[1:]):
        print(flag_help.text_of(sys.modules["__main__"].__doc__ or ""))
        return
    flags.mark_flag_as_required("config")

    def guarded(argv: list[str]) -> None:
        try:
            main(argv[1:], _task(config(), tasks))
        except (ValueError, TypeError, OSError) as error:
            if _TRACEBACK.value:
                raise
            _fail(error)

    # As of a library's thread that outlives its event loop after a full disk.
    sys.unraisablehook = _show_unraisable
    # Shells expand the `~` of an argument, but not behind `--config=`.
    argv = [
        re.sub("^(--?config=)(~.*)", lambda m: m[1] + os.path.expanduser(m[2]), given)
        for given in sys.argv
    ]
    argv[1:1] = _config_of_workdir(argv)
    try:
        app.run(guarded, argv=argv, flags_parser=lambda argv: _parse(argv, tasks))
    except KeyboardInterrupt:
        if _TRACEBACK.value:
            traceback.print_exc()
        interrupt.end_by_ctrl_c()


def _config_of_workdir(argv: list[str]) -> list[str]:
    """The flag that is left out where a run's own configuration is meant."""
    given = "\n".join(argv)
    if re.search(r"^--?config(=|$)", given, re.MULTILINE):
        return []
    folders = re.findall(r"^--?workdir(?:=|\n)(.+)$", given, re.MULTILINE)
    if not folders:
        return []
    # As with any flag, the last one counts.
    path = config_path(Path(os.path.expanduser(folders[-1])))
    return [f"--config={path}"] if path.exists() else []


def _task(config: ConfigDict, tasks: Mapping[str, Task]) -> Task:
    name = config.get("task")
    if not isinstance(name, str) or name not in tasks:
        raise ValueError(
            f"`task` is {quoted(name)}; expected one of {', '.join(tasks)}."
        )
    return tasks[name]


def _show_unraisable(unraisable: Any) -> None:
    if _TRACEBACK.value:
        sys.__unraisablehook__(unraisable)


def _parse(argv: list[str], tasks: Mapping[str, Task]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        _check_tuples(argv)
        _task(config(), tasks).check(config())
        return rest
    # The file of a configuration is a program of the user's: anything may happen.
    except Exception as error:
        if "--traceback" in argv:
            raise
        _fail(_in_config_file(error, argv) or error)


def _check_tuples(argv: list[str]) -> None:
    """Refuses what ml_collections makes a tuple of: one value, several flags."""
    given = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    seen = set()
    for argument, following in zip_longest(given, given[1:], fillvalue=""):
        name, separator, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name not in flags.FLAGS:
            continue
        if not name.startswith("config.") or not isinstance(
            flags.FLAGS[name], flags.MultiFlag
        ):
            continue
        if name in seen:
            raise ValueError(f"--{name} is given twice.")
        seen.add(name)
        value = value if separator else following
        try:
            alone = not isinstance(ast.literal_eval(value), tuple | list)
        except (ValueError, SyntaxError):
            alone = True
        if alone:
            raise ValueError(
                f"--{name} is {quoted(value)}; expected a tuple, such as (1, 2)."
            )


def _in_config_file(error: BaseException, argv: list[str]) -> ValueError | None:
    """Says where in the file of the configuration an error was raised, if it was."""
    given = re.search(r"^--?config[=\n]([^:\n]+)", "\n".join(argv), re.MULTILINE)
    found = None
    cause: BaseException | None = error
    while cause is not None and given:
        for frame in traceback.extract_tb(cause.__traceback__):
            if frame.filename == given[1]:
                text = str(cause) or type(cause).__name__
                found = ValueError(f"{given[1]}, line {frame.lineno}: {text}")
        cause = cause.__context__
    return found


def _fail(error: BaseException) -> NoReturn:
    # ml_collections wraps its errors, and a KeyError's text is the repr of its message.
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    # It may hold a piece of somebody's file, control characters too.
    text = one_line(text, 1500) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)
