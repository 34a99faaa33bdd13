"""The example and the benchmark run, small."""

import re
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=HOME, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_finds_sources() -> None:
    script = HOME / "examples" / "rag.py"
    assert len(script.read_text().splitlines()) <= 60
    output = run(str(script), "How do I read a compressed archive?")
    sources = output.partition("How do I read a compressed archive?\n")[2].splitlines()
    assert len(sources) == 3 and all(re.match(r"  [\w.]+: .{20,}", source) for source in sources)
    assert "vectors as float32" in output


def test_the_benchmark_compares() -> None:
    output = run(
        "benchmarks/add_documents.py", "--documents", "300", "--batch", "200", "--repeats", "1"
    ).splitlines()
    assert [line.split()[0] for line in output] == ["LlamaIndex", "core", "ratio"]
    assert float(output[-1].split()[-1]) > 0
