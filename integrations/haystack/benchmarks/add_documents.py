"""How long it takes to write documents through Haystack's document store, and the same rows without Haystack.

    python benchmarks/add_documents.py --documents 100000

Both write to a table with the same codec, in batches of the same size, one after the other in turn.
Everything is written by merging on the ids, so that rows written again replace those that are there.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import lancedb
import numpy as np
import typer
from haystack.dataclasses import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore

import rqmoe_store as rqs

DIMS = 384


def main(
    documents: Annotated[int, typer.Option(min=1, help="Documents to write.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="Documents per call.")] = 10_000,
    repeats: Annotated[int, typer.Option(min=1, help="How often either way is timed.")] = 3,
    trained_on: Annotated[int, typer.Option(min=256, help="Embeddings to make the codec from.")] = 2_000,
) -> None:
    """Time both ways, and print the ratio of their medians."""
    vectors_ND = np.random.default_rng(0).normal(size=(documents, DIMS)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty"
        _make_empty(empty, trained_on)
        seconds: dict[str, list[float]] = {"haystack": [], "core": []}
        for _ in range(repeats):
            for name, write in (("haystack", _write_documents), ("core", _write_rows)):
                seconds[name].append(_timed(write, empty, Path(folder) / "copy", vectors_ND, batch))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        typer.echo(f"{name:10} {median:8.2f} s, {documents / median:8,.0f} documents a second")
    typer.echo(f"ratio of medians: {medians['haystack'] / medians['core']:.2f}")


def _make_empty(path: Path, trained_on: int) -> None:
    """A database whose table of documents has a codec and no rows."""
    quickly = rqs.TrainConfig(epochs=0, progress=False)
    store = RQMoEDocumentStore(str(path), training=quickly, train_from=trained_on, progress_bar=False)
    vectors_ND = np.random.default_rng(1).normal(size=(trained_on, DIMS))
    store.write_documents(
        [Document(id=str(row), embedding=vectors_ND[row].tolist()) for row in range(trained_on)]
    )
    store.delete_all_documents()


def _timed(
    write: Callable[[Path, np.ndarray, int], Iterator[None]],
    empty: Path,
    copy: Path,
    vectors_ND: np.ndarray,
    batch: int,
) -> float:
    """Seconds that `write` takes on a copy of the empty database, without making what it writes."""
    shutil.copytree(empty, copy)
    seconds, steps = 0.0, write(copy, vectors_ND, batch)
    for _ in steps:  # what is to be written next has been made
        start = time.perf_counter()
        next(steps)
        seconds += time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds


def _write_documents(path: Path, vectors_ND: np.ndarray, batch: int) -> Iterator[None]:
    """Write through Haystack; stops before and after every batch."""
    store = RQMoEDocumentStore(str(path), progress_bar=False)
    for start in range(0, len(vectors_ND), batch):
        documents = [
            Document(
                id=str(row), content=f"text {row}", meta={"row": row}, embedding=vectors_ND[row].tolist()
            )
            for row in range(start, min(start + batch, len(vectors_ND)))
        ]
        yield
        store.write_documents(documents, DuplicatePolicy.OVERWRITE)
        yield


def _write_rows(path: Path, vectors_ND: np.ndarray, batch: int) -> Iterator[None]:
    """Write the same rows without Haystack; stops before and after every batch."""
    table = rqs.open_table(lancedb.connect(path), "documents")
    for start in range(0, len(vectors_ND), batch):
        rows = [
            {
                "id": str(row),
                "content": f"text {row}",
                "meta": json.dumps({"row": row}),
                "embedding": vectors_ND[row].tolist(),
                **dict.fromkeys(("dates", "blob", "blob_about", "score", "sparse_embedding")),
            }
            for row in range(start, min(start + batch, len(vectors_ND)))
        ]
        yield
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        yield


if __name__ == "__main__":
    typer.run(main)
