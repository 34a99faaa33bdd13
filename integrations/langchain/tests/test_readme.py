"""The README's Python runs as it stands, top to bottom."""

import re
import subprocess
import sys
from pathlib import Path


def test_python_blocks_run_in_order(project: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (project / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,  # of a hang; a busy machine takes a minute or two
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "metadata={'author': 'Ann'}, page_content='x'" in run.stdout
