"""Every example runs as it stands, in a process of its own."""

from pathlib import Path

import pytest
from other_processes import run_file

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, tmp_path):
    assert run_file(path, tmp_path).strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 60


def test_there_are_examples():
    assert EXAMPLES
