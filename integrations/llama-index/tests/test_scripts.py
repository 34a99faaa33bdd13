"""The example and the benchmark run, small."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent


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


def test_the_example_finds_sources(printed: Callable[..., str]) -> None:
    script = HOME / "examples" / "rag.py"
    assert len(script.read_text().splitlines()) <= 60
    output = printed(script, "How do I read a compressed archive?")
    sources = output.partition("How do I read a compressed archive?\n")[2].splitlines()
    assert len(sources) == 3 and all(re.match(r"  [\w.]+: .{20,}", source) for source in sources)
    assert "vectors as float32" in output


def test_the_benchmark_compares(printed: Callable[..., str]) -> None:
    script = HOME / "benchmarks" / "add_documents.py"
    output = printed(script, "--documents", "300", "--batch", "200", "--repeats", "1").splitlines()
    assert [line.split()[0] for line in output] == ["LlamaIndex", "core", "ratio"]
    assert float(output[-1].split()[-1]) > 0
