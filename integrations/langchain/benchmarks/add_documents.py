"""Time adding documents through LangChain beside the same rows through the store's own API.

Both write into tables with the same quickly made codec, batch by batch in turns, so that both meet the same
machine.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import typer
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_rqmoe import RQMoEVectorStore

import rqmoe_store as rqs

TRAINED_ON = 2_000
CONFIG = rqs.CodecConfig(kind="rq", code_bytes=16)

Float32Array = npt.NDArray[np.float32]


class GivenEmbeddings(Embeddings):
    """Vectors that are known: a text is the number of its row."""

    def __init__(self, vectors_ND: Float32Array) -> None:
        self.vectors = vectors_ND.tolist()  # what a model returns

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.vectors[int(text)] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def with_codec(folder: Path, vectors_ND: Float32Array) -> RQMoEVectorStore:
    """A vector store whose table has a codec, trained on the first of these vectors, and no rows."""
    store = RQMoEVectorStore(
        GivenEmbeddings(vectors_ND),
        uri=folder,
        config=CONFIG,
        training=rqs.TrainConfig(progress=False),
        train_from=TRAINED_ON,
    )
    store.add_texts([str(row) for row in range(TRAINED_ON)])
    store.delete()
    return store


def timed(documents: int, batch: int, dim: int, ids: bool, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds per batch: through LangChain, and through the store."""
    vectors_ND = np.random.default_rng(0).normal(size=(max(documents, TRAINED_ON), dim)).astype(np.float32)
    adapter = with_codec(folder / "adapter", vectors_ND)
    with_codec(folder / "core", vectors_ND)
    core = rqs.open_table(lancedb.connect(folder / "core"), "vectorstore")
    seconds: tuple[list[float], list[float]] = ([], [])
    for start in range(0, documents, batch):
        rows = range(start, min(start + batch, documents))
        given = [
            Document(str(row), id=f"id {row}" if ids else None, metadata={"row": row, "even": row % 2 == 0})
            for row in rows
        ]
        began = time.perf_counter()
        adapter.add_documents(given)
        seconds[0].append(time.perf_counter() - began)
        table = arrow_rows(given, vectors_ND[rows.start : rows.stop])
        began = time.perf_counter()
        if ids:
            core.merge_insert().when_matched_update_all().when_not_matched_insert_all().execute(table)
        else:
            core.add(table)
        seconds[1].append(time.perf_counter() - began)
    assert adapter.table is not None and adapter.table.count_rows() == core.count_rows() == documents
    return seconds


def arrow_rows(given: list[Document], vectors_ND: Float32Array) -> pa.Table:
    """The rows of these documents, ready to be written."""
    metadata = pa.array([json.dumps(one.metadata) for one in given]).cast(pa.json_(pa.string()))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])
    ids = [one.id or f"id {one.page_content}" for one in given]
    texts = [one.page_content for one in given]
    return pa.table({"id": ids, "text": texts, "metadata": metadata, "vector": vectors})


def main(
    documents: Annotated[int, typer.Option(help="Documents to add.")] = 100_000,
    batch: Annotated[int, typer.Option(help="Documents per call.")] = 1_000,
    dim: Annotated[int, typer.Option(help="Components of a vector.")] = 384,
) -> None:
    """Print seconds per batch and their ratio, for new documents and for documents with ids."""
    for ids in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            adapter, core = timed(documents, batch, dim, ids, Path(folder))
        through, direct = statistics.median(adapter), statistics.median(core)
        print(
            f"{'upserts by id' if ids else 'new documents'}: LangChain {through:.4f} s, store {direct:.4f} s "
            f"per {batch:,} documents (medians of {len(core)}), ratio {through / direct:.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
