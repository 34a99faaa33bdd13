"""Every example runs as it stands, in a process of its own."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from other_processes import run_file

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
NOTEBOOK = FOLDER / "quickstart.ipynb"


def with_marks(path: Path) -> Any:
    """`make test` leaves out the one that trains most, of which the notebook has much."""
    return pytest.param(path, marks=pytest.mark.slow if path.name == "choose_bytes.py" else ())


@pytest.mark.parametrize("path", [with_marks(path) for path in EXAMPLES], ids=lambda path: path.name)
def test_example_runs(path, tmp_path):
    assert run_file(path, tmp_path).strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 60


def test_there_are_examples():
    assert EXAMPLES


def plots(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = plots(notebook)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert plots(notebook) == stored == 2
    assert "9999" in str(notebook.cells[-2].outputs[-1].data)  # the row that was added is the nearest


def test_notebook_stores_no_times_and_no_errors():
    outputs = [
        output for cell in nbformat.read(NOTEBOOK, as_version=4).cells for output in cell.get("outputs", [])
    ]
    texts = [str(output.get("text") or output.get("data", {}).get("text/plain")) for output in outputs]
    assert len(texts) == 6
    assert not [text for text in texts if re.search(r"\d ?(ms|s|seconds|minutes)\b|Warning|Error", text)]
