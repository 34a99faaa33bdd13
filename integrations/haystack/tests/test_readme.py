"""The README's Python, the example and the benchmark run as a new user would run them.

They run in this process: to import all that they need once more takes longer than what they do.
"""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(script: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        assert not end.code


def test_python_blocks_run_in_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.count("content: 'page ") == 3
    assert (folder / "data" / "documents.lance").is_dir()


def test_example_prints_sources(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = ROOT / "examples" / "rag.py"
    assert len(script.read_text().splitlines()) <= 60
    _run(script, monkeypatch, "How do I open a compressed file?")
    printed = capsys.readouterr().out
    assert "raw vectors on disk    none" in printed
    assert len(re.findall(r"^  \S+: ", printed.partition("?\n")[2], flags=re.MULTILINE)) == 3


def test_benchmark_prints_a_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--documents", "100", "--batch", "50", "--repeats", "1", "--trained-on", "300"]
    _run(ROOT / "benchmarks" / "add_documents.py", monkeypatch, *sizes)
    assert re.search(r"ratio of medians: \d+\.\d\d", capsys.readouterr().out)
