"""The site of the documentation, by Sphinx: `scripts/docs.sh`."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

docs = Path(__file__).resolve().parent
sys.path.insert(0, str(docs / "extensions"))
# The processes of notebooks inherit these; `train` is no part of the installed package.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(docs.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

project = "dcn-jax"
version = release = version_of("dcn-jax")
author = "the authors of dcn-jax"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "docstrings",
    "repository_pages",
]
exclude_patterns = ["extensions"]

# Pages -> the files of the repository that they show.
repository_pages = {
    "index": "README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "kernels": "xla_ops/README.md",
    "golden": "tests/golden/README.md",
}

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # Pages that go on after a file's text.

# Notebooks run with each build, and a cell that fails, or runs long, fails it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_merge_streams = True

# A name in backticks is a link where it is one of ours.
default_role = "py:obj"
add_module_names = False
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"dcn-jax {release}"
html_copy_source = False
html_show_search_summary = False  # It would be fetched, which pages on a disk may not.
html_show_copyright = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
