"""The libraries that only measuring needs, and that the extra `bench` installs."""

import importlib.util

from rqmoe_store.errors import RQMoEError


def require_bench(*modules: str) -> None:
    """Raise RQMoEError, with the command that installs them, unless all `modules` are installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise RQMoEError(
            f"Not installed: {', '.join(missing)}. Install what measuring needs with: "
            'pip install "rqmoe-store[bench]"'
        )
