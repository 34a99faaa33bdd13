"""Stores whose codec is small and quickly trained."""

from pathlib import Path
from typing import Any

from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore

import rqmoe_store as rqs

SMALL_CODEC = rqs.CodecConfig(kind="rq", metric="cosine", code_bytes=4, codebook_size=16, num_partitions=0)
QUICKLY = rqs.TrainConfig(epochs=0, progress=False)


def new_store(database: str | Path, **settings: Any) -> RQMoEDocumentStore:
    """A store with a small codec that is quickly trained, unless the settings say otherwise."""
    defaults: dict[str, Any] = {"config": SMALL_CODEC, "training": QUICKLY, "progress_bar": False}
    return RQMoEDocumentStore(str(database), **(defaults | settings))
