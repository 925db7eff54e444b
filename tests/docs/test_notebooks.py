"""The notebooks of the documentation run, cell by cell."""

from pathlib import Path

import pytest

pytest.importorskip("myst_nb")
nbclient = pytest.importorskip("nbclient")
from myst_nb.core.read import read_myst_markdown_notebook  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
# They start other processes, train, or compile networks.
SLOW = ("coco", "devices", "explain", "export")
# Of pyzmq and its event loop, on which nothing here depends.
pytestmark = pytest.mark.filterwarnings("ignore")


def run(text: str, folder: Path, monkeypatch) -> list:
    """Runs a notebook in a folder; returns its cells of code with their outputs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    notebook = read_myst_markdown_notebook(text)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in sorted(NOTEBOOKS.glob("*.md"))
    ],
)
def test_notebook(name, tmp_path, monkeypatch):
    text = (NOTEBOOKS / f"{name}.md").read_text()
    cells = run(text, tmp_path, monkeypatch)
    assert len(cells) == text.count("```{code-cell}") > 4
    assert all(cell.execution_count for cell in cells)
    kinds = {
        kind
        for cell in cells
        for output in cell.outputs
        for kind in output.get("data", ())
    }
    assert "text/plain" in kinds
    assert ("image/png" in kinds) == ("Image(" in text)


def test_a_cell_that_fails_fails_the_notebook(tmp_path, monkeypatch):
    head = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n"
    text = f"{head}# Title\n\n```{{code-cell}}\nassert 1 + 1 == 3\n```\n"
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="AssertionError"):
        run(text, tmp_path, monkeypatch)
