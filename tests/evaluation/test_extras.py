"""A missing extra is named with what installs it."""

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
