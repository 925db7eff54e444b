"""Files of the repository as pages of the site, and links between them.

A page that `repository_pages` of conf.py names begins with the text of that file; what
stands in its own file follows. Links are written as they work in the repository: to a
file that is a page they lead to the page, and to any other file to a copy of it, which
the site has with it. A link to what is not there fails the build.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

# Markdown's links and images, and pictures in HTML.
_LINK = re.compile(r"(?P<before>\]\(|<img [^>]*?src=\")(?P<to>[^)\s\"#:]+)(?=[)\s\"#])")


def setup(app: Sphinx) -> dict:
    """Registers the extension."""
    app.add_config_value("repository_pages", {}, "env", dict)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    if app.env.doc2path(page).suffix != ".md":
        return
    docs = Path(app.srcdir)
    pages = {
        (docs.parent / file).resolve(): docs / f"{name}.md"
        for name, file in app.config.repository_pages.items()
    }
    own = docs / f"{page}.md"
    text = _relinked(source[0], own, own, pages)
    if page in app.config.repository_pages:
        file = docs.parent / app.config.repository_pages[page]
        app.env.note_dependency(str(file))
        text = _relinked(file.read_text(), file, own, pages) + "\n" + text
    source[0] = text


def _relinked(text: str, file: Path, page: Path, pages: dict[Path, Path]) -> str:
    """The text of a file with its relative links as the page needs them."""

    def relinked(link: re.Match) -> str:
        target = (file.parent / link["to"]).resolve()
        target = pages.get(target, target)
        return link["before"] + os.path.relpath(target, page.parent)

    return _LINK.sub(relinked, text)
