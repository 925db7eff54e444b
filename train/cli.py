"""What the command lines share: flags, and one clear line for a user's mistake."""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from train.config_dict import ConfigDict

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: FILE.py or FILE.py:ARG; --config.field=value overrides a field.",
    lock_config=True,
)
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
    return Path(_WORKDIR.value or Path("runs") / config().name).expanduser()


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags and calls `main` with the remaining arguments.

    Mistakes that a user can mend (ValueError, TypeError, OSError) end the program
    with status 1 and one line on stderr; Ctrl-C ends it without one; other exceptions
    show their traceback.
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
    flags.mark_flag_as_required("config")

    def guarded(argv: list[str]) -> None:
        try:
            main(argv[1:])
        except (ValueError, TypeError, OSError) as error:
            if _TRACEBACK.value:
                raise
            _fail(error)

    sys.excepthook = _show
    # As of a library's thread that outlives its event loop after a full disk.
    sys.unraisablehook = _show_unraisable
    # Shells expand the `~` of an argument, but not behind `--config=`.
    argv = [
        re.sub(r"(?<=^--config=)~.*", lambda path: os.path.expanduser(path[0]), given)
        for given in sys.argv
    ]
    app.run(guarded, argv=argv, flags_parser=_parse)


def _show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    # Python ends by the signal itself, so a shell's loop over runs ends too.
    if _TRACEBACK.value or not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def _show_unraisable(unraisable: Any) -> None:
    if _TRACEBACK.value:
        sys.__unraisablehook__(unraisable)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        if "--traceback" in argv:
            raise
        _fail(error)


def _fail(error: BaseException) -> NoReturn:
    # ml_collections wraps its errors, and a KeyError's text is the repr of its message.
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    text = " ".join(text.split()) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)
