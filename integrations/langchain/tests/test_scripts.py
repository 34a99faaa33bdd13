"""The example and the benchmark run."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script in this process, which has imported most of what it needs, and return what it prints."""

    def run(script: Path, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            assert not end.code
        return capsys.readouterr().out

    return run


def test_example(project: Path, tmp_path: Path, printed: Callable[..., str]) -> None:
    script = project / "examples" / "rag.py"
    assert len(script.read_text().splitlines()) <= 60
    answer = printed(script, "How do I unpack an archive?", str(tmp_path))
    assert "shutil.unpack_archive: Unpack an archive." in answer
    assert answer.rstrip().endswith("Question: How do I unpack an archive?")
    assert re.search(r"codes on disk .*\(16\.\d+ per vector\)", answer)


def test_benchmark(project: Path, printed: Callable[..., str]) -> None:
    lines = printed(project / "benchmarks" / "add_documents.py", "--documents", "2000", "--dim", "16")
    assert len(re.findall(r"ratio \d+\.\d\d", lines)) == 2
