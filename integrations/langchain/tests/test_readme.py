"""The README's Python runs as it stands, top to bottom."""

import re
from pathlib import Path

import pytest


def test_python_blocks_run_in_order(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (project / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    assert "metadata={'author': 'Ann'}, page_content='x'" in capsys.readouterr().out
