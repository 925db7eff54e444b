"""What `--help` prints: a program's flags, and the fields of a configuration."""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

from train.configs import _base

# Lines of `get_config`: what a field means, the begin of a section, a field.
_COMMENT = re.compile(r"    # (.*)")
_SECTION = re.compile(r"    config\.(\w+) = (\w+) = ConfigDict\(\)")
_FIELD = re.compile(r"    (\w+)\.(\w+) = (.+)")
_WIDTH = 100


class Field(NamedTuple):
    """A field of a configuration."""

    path: str
    default: str
    meaning: str


def text_of(document: str) -> str:
    """Returns the help of the program that was started.

    Args:
      document: What its module says of itself.
    """
    lines = [document.strip(), "", "Flags:"]
    for flag in _own_flags():
        default = "" if flag.default is None else f"={flag.default}"
        lines += _entry(f"--{flag.name}{default}", flag.help or "")
    lines += ["", "Fields of a configuration, --config.FIELD=VALUE:"]
    for field in fields():
        lines += _entry(f"{field.path} = {field.default}", field.meaning)
    lines += [
        "",
        "Those of `model` are the arguments of the constructors that "
        "train/configs/_detection.py and",
        "train/configs/_segmentation.py name. --helpfull lists the flags of libraries.",
    ]
    return "\n".join(lines)


def fields() -> Iterator[Field]:
    """Yields the fields that all tasks share, as `train/configs/_base.py` explains."""
    sections = {"config": ""}
    meaning: list[str] = []
    for line in inspect.getsource(_base.get_config).splitlines():
        if comment := _COMMENT.fullmatch(line):
            meaning.append(comment[1])
            continue
        if section := _SECTION.fullmatch(line):
            sections[section[2]] = f"{section[1]}."
        elif (field := _FIELD.fullmatch(line)) and field[1] in sections:
            path = sections[field[1]] + field[2]
            yield Field(path, field[3], " ".join(meaning))
        meaning = []


def _own_flags() -> list[flags.Flag]:
    """Flags of this package's modules and of the program, by name."""
    found = {
        flag.name: flag
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        for flag in defined
        if module.split(".")[0] in ("train", "__main__") or module == sys.argv[0]
    }
    names = sorted(name for name in found if not name.startswith("config."))
    return [found[name] for name in names]


def _entry(name: str, meaning: str) -> list[str]:
    indented = textwrap.wrap(" ".join(meaning.split()), _WIDTH - 6)
    return [f"  {name}", *(f"      {line}" for line in indented)]
