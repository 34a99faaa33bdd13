"""rqmoe-store on Ray clusters: bulk ingestion, search over shards, and training by several workers."""

from rqmoe_ray.ingestion import ingest
from rqmoe_ray.searching import open_table, search
from rqmoe_ray.training import train

__version__ = "0.1.0"

__all__ = ["__version__", "ingest", "open_table", "search", "train"]
