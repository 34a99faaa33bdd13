"""The README's Python runs as a new user would paste it, top to bottom."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run_in_order(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 5
    script = "\n".join(blocks)
    quick, times = re.subn(r"max_minutes=[\d.]+", "max_minutes=0.05", script)  # the one change: less patience
    assert times == 4
    run = subprocess.run(
        [sys.executable, "-c", quick], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "a new row" in run.stdout
