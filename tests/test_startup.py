"""The garbage collector rests while modules are loaded, and is left as it was."""

import gc
import sys

import pytest

from rqmoe_store.startup import import_quickly, load_numba

MODULE = "import gc\nfound = gc.isenabled()\n{failure}"


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("failure", ["", "raise ValueError('no module')"])
def test_the_collector_is_left_as_it_was(enabled, failure, tmp_path, monkeypatch):
    name = f"loaded_{enabled}_{bool(failure)}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(failure=failure))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        if not enabled:
            gc.disable()
        if failure:
            with pytest.raises(ValueError, match="no module"):
                import_quickly(name)
        else:
            assert import_quickly(name).found is False
            assert import_quickly(name) is sys.modules.pop(name)
        load_numba.cache_clear()
        load_numba()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
