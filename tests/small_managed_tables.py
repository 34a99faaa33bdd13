"""Managed tables with a small codec, rows for them, and a process that adds some."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.managed_table import ManagedTable

DIM = 8
COLUMNS = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string())])
SMALL = CodecConfig(kind="rq", metric="cosine", code_bytes=4, codebook_size=16, num_partitions=0)
QUICKLY = TrainConfig(epochs=0, progress=False)


def managed(database: Any, name: str = "docs", **settings: Any) -> ManagedTable:
    """A managed table of COLUMNS, with a small codec that is quickly trained unless the settings differ."""
    defaults: dict[str, Any] = {
        "columns": COLUMNS,
        "key": "id",
        "text_column": "text",
        "config": SMALL,
        "training": QUICKLY,
        "train_from": None,
    }
    return ManagedTable(database, name, **(defaults | settings))


def rows(ids: list[str], text: str = "words", dim: int = DIM, **vectors: Any) -> pa.Table:
    """Rows with random vectors (dim,), or those given by id; None for none."""
    generator = np.random.default_rng(len(ids))
    values = [vectors.get(one, generator.normal(size=dim).tolist()) for one in ids]
    fields = [*COLUMNS, pa.field("vector", pa.list_(pa.float32(), dim))]
    return pa.table([ids, [text] * len(ids), pa.array(values, fields[-1].type)], schema=pa.schema(fields))


def many(start: int, end: int, **settings: Any) -> pa.Table:
    """Rows with the ids "start" to "end - 1"."""
    return rows([str(number) for number in range(start, end)], **settings)


def add_in_process(folder: Path, process: int, together: Any) -> None:
    """Add the first rows of a table once all processes are ready to, ten of them and one that all share."""
    table = managed(str(folder))
    assert table.open() is None
    together.wait()
    added = table.add(rows([*(f"{process}-{number}" for number in range(10)), "shared"]))
    assert added.inserted + added.updated == 11
