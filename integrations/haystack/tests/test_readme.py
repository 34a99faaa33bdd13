"""The README's Python, the example and the benchmark run as a new user would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "HAYSTACK_TELEMETRY_ENABLED": "False"}


def _run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python_blocks_run_in_order(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    printed = _run(tmp_path, "-c", "\n".join(blocks))
    assert printed.count("content: 'page ") == 3
    assert (tmp_path / "data" / "documents.lance").is_dir()


def test_example_prints_sources(tmp_path: Path) -> None:
    script = ROOT / "examples" / "rag.py"
    assert len(script.read_text().splitlines()) <= 60
    printed = _run(tmp_path, str(script), "How do I open a compressed file?")
    assert "raw vectors on disk    none" in printed
    assert len(re.findall(r"^  \S+: ", printed.partition("?\n")[2], flags=re.MULTILINE)) == 3


def test_benchmark_prints_a_ratio(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "add_documents.py"
    printed = _run(
        tmp_path, str(script), "--documents", "100", "--batch", "50", "--repeats", "1", "--trained-on", "300"
    )
    assert re.search(r"ratio of medians: \d+\.\d\d", printed)
