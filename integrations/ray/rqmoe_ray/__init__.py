"""rqmoe-store on Ray clusters: bulk ingestion, search over shards, and training by several workers.

The public names are imported when first used, so that a worker waits for what it needs only.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rqmoe_ray.ingestion import ingest
    from rqmoe_ray.searching import open_table, search
    from rqmoe_ray.training import train

__version__ = importlib.metadata.version("rqmoe-ray")

__all__ = ["__version__", "ingest", "open_table", "search", "train"]

_LAZY = {
    "ingest": "rqmoe_ray.ingestion",
    "open_table": "rqmoe_ray.searching",
    "search": "rqmoe_ray.searching",
    "train": "rqmoe_ray.training",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
