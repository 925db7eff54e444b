"""Docstrings of the house for Sphinx, which takes them for reStructuredText.

Shapes such as [*N, H, W, C] are text, not markup, and what is indented by four after a
blank line is code. The fields of a NamedTuple are told by their comments.
"""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

_LITERAL = re.compile(r"(`+[^`]*`+)")
_MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")
# "features: K." is no list whose tenth item begins here.
_ENUMERATED = re.compile(r"((?:^|: )\s*\w)\.(?=\s|$)")
# Where a type of an annotation is from.
_ORIGIN = re.compile(r"(?:jaxtyping|jaxlib\._jax|jax)\.(?=[A-Z])")


def setup(app: Sphinx) -> dict:
    """Registers the extension."""
    # Before napoleon, which makes markup.
    app.connect("autodoc-process-docstring", _process_docstring, priority=100)
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("doctree-read", _shorten_annotations)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True}


def _process_docstring(app, what, name, value, options, lines: list[str]) -> None:
    if what == "class" and hasattr(value, "_fields"):
        lines += ["", "Attributes:", *_fields(value)]
    written: list[str] = []
    code, above = False, ""
    for line in lines:
        after_blank = bool(written) and not written[-1].strip()
        if line.strip():
            code = line.startswith("    ") and (
                code or (after_blank and not above.startswith(" "))
            )
            if code and not above.startswith(" "):
                written += ["::", ""]
            above = line
        written.append(line if code else _escaped(line))
    lines[:] = written


def _escaped(line: str) -> str:
    parts = _LITERAL.split(_ENUMERATED.sub(r"\1\\.", line))
    parts[::2] = [_MARKUP.sub(lambda mark: "\\" + mark[0], part) for part in parts[::2]]
    return "".join(parts)


def _fields(record: Any) -> list[str]:
    """Lines of an Attributes section, by the comments of the source."""
    source = inspect.getsource(record)
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    numbers = {
        match[1]: number
        for number, line in enumerate(lines, 1)
        if (match := re.match(r"    (\w+): ", line))
    }
    found = []
    for field in record._fields:
        number = numbers[field]
        told = [comments.get(number, "")]
        # Behind the field, or in lines of their own before it.
        while not told[-1] and lines[number - 2].lstrip().startswith("#"):
            number -= 1
            told.insert(0, comments[number])
        kind = inspect.formatannotation(record.__annotations__[field])
        found.append(f"  {field} ({kind}): {' '.join(told).strip()}")
    return found


def _process_signature(app, what, name, value, options, arguments, returned):
    if what == "class" and (written := _written(value)):
        return written, returned
    return None


def _written(made: type) -> str | None:
    """The arguments of a class as its source has them.

    Classes of Flax hide them, and the values of defaults are longer than their names.
    """
    home = next((c for c in made.__mro__ if "__init__" in vars(c)), made)
    if hasattr(made, "_fields") or dataclasses.is_dataclass(made):
        home = made
    if home.__module__.split(".")[0] not in ("dcn_jax", "xla_ops"):
        return None
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(home))).body
    assert isinstance(node, ast.ClassDef)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            del part.args.args[0]
            return f"({ast.unparse(part.args)})"
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    return f"({', '.join(map(ast.unparse, fields))})" if fields else None


def _skip_member(app, what, name, value, skip, options) -> bool | None:
    # The fields of a NamedTuple stand under Attributes already.
    is_field = type(value).__name__ == "_tuplegetter"
    module = getattr(value, "__module__", None) or ""
    is_flax = name == "__call__" and module.startswith("flax.")
    return True if is_field or is_flax else None


def _shorten_annotations(app, doctree: nodes.document) -> None:
    for described in doctree.findall(addnodes.desc):
        for text in list(described.findall(nodes.Text)):
            if isinstance(text.parent, nodes.literal):
                continue
            # The type that a method of a class shares with who it is called on.
            shown = _ORIGIN.sub("", text).replace("_Kind", "Self")
            if shown != text:
                text.parent.replace(text, nodes.Text(shown))
