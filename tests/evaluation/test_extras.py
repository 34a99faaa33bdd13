"""A missing extra is named with the command that installs it."""

import subprocess
import sys

import pytest

from rqmoe_store.errors import RQMoEError
from rqmoe_store.evaluation.machine import require_bench


def test_installed_modules_pass() -> None:
    require_bench("json", "numpy")
    require_bench()


def test_missing_modules_are_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(RQMoEError, match=r'installed: psutil, no_such_module\. .*"rqmoe-store\[bench\]"'):
        require_bench("json", "psutil", "no_such_module")


def test_a_command_names_the_extra_that_is_missing() -> None:
    """In a process of its own, which has not imported anything of the extra."""
    arguments = ["bench", "codec", "--vectors", "a.npy", "--queries", "b.npy"]
    code = f"import sys; sys.modules['psutil'] = None; from rqmoe_store.cli import app; app({arguments})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Not installed: psutil." in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
