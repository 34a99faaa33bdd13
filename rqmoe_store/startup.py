"""Start-up time of a process: modules and what numba needs to run, loaded without garbage collection.

Loading makes hundreds of thousands of objects that stay. The collector goes through all of them again and
again meanwhile, which takes up to a third of the time, and finds nothing.
"""

import contextlib
import functools
import gc
import importlib
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_quickly(name: str) -> ModuleType:
    """Import a module, and what it imports, as `importlib.import_module` does."""
    with _no_garbage_collection():
        return importlib.import_module(name)


@functools.cache
def load_numba() -> None:
    """Load what numba needs to run compiled functions, which the first call of one would load otherwise."""
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    with _no_garbage_collection(), global_compiler_lock:
        cpu_target.target_context.refresh()
