"""The example and the benchmark run."""

import re
import subprocess
import sys
from pathlib import Path


def printed(script: Path, *arguments: str) -> str:
    """What a script prints; it must not fail."""
    run = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=900, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_example(project: Path, tmp_path: Path) -> None:
    script = project / "examples" / "rag.py"
    assert len(script.read_text().splitlines()) <= 60
    answer = printed(script, "How do I unpack an archive?", str(tmp_path))
    assert "shutil.unpack_archive: Unpack an archive." in answer
    assert answer.rstrip().endswith("Question: How do I unpack an archive?")
    assert re.search(r"codes on disk .*\(16\.\d+ per vector\)", answer)


def test_benchmark(project: Path) -> None:
    lines = printed(project / "benchmarks" / "add_documents.py", "--documents", "2000", "--dim", "16")
    assert len(re.findall(r"ratio \d+\.\d\d", lines)) == 2
