"""Notebooks in a real kernel: those of docs/notebooks, and what a kernel shows of errors and interruptions."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_it_shows_in_the_documentation(path: Path, tmp_path: Path) -> None:
    written = nbformat.read(path, as_version=4)
    kinds = [
        [sorted({"text/html", "image/svg+xml"} & set(output.get("data", {}))) for output in cell.get("outputs", [])]
        for cell in written.cells
    ]
    executed = execute(nbformat.read(path, as_version=4), tmp_path)
    again = [
        [sorted({"text/html", "image/svg+xml"} & set(output.get("data", {}))) for output in cell.get("outputs", [])]
        for cell in executed.cells
    ]
    assert again == kinds
    assert any("svg" in kind for cell in kinds for output in cell for kind in output)
    assert not any("Warning" in output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_mistake_in_a_notebook_is_one_line(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("import dnas; dnas.search('nope', trials=1)")
    with pytest.raises(CellExecutionError):
        execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    (error,) = (output for output in cell.outputs if output.output_type == "error")
    assert error.traceback == [f"InputError: {error.evalue}"]
