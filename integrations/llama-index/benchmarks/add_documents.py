"""How long it takes to add nodes through LlamaIndex's store, and the same rows without LlamaIndex.

    python benchmarks/add_documents.py --documents 100000

Both write to copies of a table with a codec, in batches of one size, by turns, and by merging on the ids,
so that a node written again replaces the one that is there. Making nodes and rows is not timed.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import lancedb
import numpy as np
import typer
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from llama_index.vector_stores.rqmoe.columns import NodeColumns
from llama_index.vector_stores.rqmoe.rows import rows_of

import rqmoe_store as rqs

DIM = 384
TRAINED_ON = 1_000
TABLE = "vectors"


def main(
    documents: Annotated[int, typer.Option(min=1, help="Nodes to add.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="Nodes in a call; the default is LlamaIndex's.")] = 2_048,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of either way.")] = 3,
) -> None:
    """Time both ways, and print the ratio of their medians."""
    batches = [_nodes(range(start, min(start + batch, documents))) for start in range(0, documents, batch)]
    rows = [_rows(nodes) for nodes in batches]
    seconds: dict[str, list[float]] = {"LlamaIndex": [], "core": []}
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty"
        _make_empty(empty)
        for _ in range(repeats):
            seconds["LlamaIndex"].append(_timed(_nodes_added(batches), empty))
            seconds["core"].append(_timed(_rows_merged(rows), empty))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        typer.echo(f"{name:10} {median:8.2f} s, {documents / median:8,.0f} a second")
    typer.echo(f"ratio of medians: {medians['LlamaIndex'] / medians['core']:.2f}")


def _nodes(numbers: range) -> list[TextNode]:
    vectors = np.random.default_rng(numbers.start).normal(size=(len(numbers), DIM))
    return [
        TextNode(
            id_=f"n{number}",
            text=f"This is the text of node {number}, which is about as long as a sentence.",
            embedding=vector.tolist(),
            metadata={"number": number, "file_name": f"file {number // 10}.md"},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{number // 10}")},
        )
        for number, vector in zip(numbers, vectors, strict=True)
    ]


def _rows(nodes: list[TextNode]) -> list[dict[str, Any]]:
    """The same as lists of dicts, with the same embeddings, as one would give them to the table."""
    made = rows_of(nodes, NodeColumns()).drop_columns(["vector"]).to_pylist()
    return [row | {"vector": node.embedding} for row, node in zip(made, nodes, strict=True)]


def _make_empty(path: Path) -> None:
    """A database whose table of nodes has a codec and no rows."""
    quickly = rqs.TrainConfig(epochs=0, progress=False)
    store = RQMoEVectorStore(uri=str(path), table_name=TABLE, training=quickly, train_from=TRAINED_ON)
    store.add(_nodes(range(10**9, 10**9 + TRAINED_ON)))
    store.clear()


def _timed(write: Callable[[str], None], empty: Path) -> float:
    """Seconds that `write` takes on a copy of the empty database."""
    copy = empty.with_name("copy")
    shutil.copytree(empty, copy)
    start = time.perf_counter()
    write(str(copy))
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds


def _nodes_added(batches: list[list[TextNode]]) -> Callable[[str], None]:
    def write(uri: str) -> None:
        store = RQMoEVectorStore(uri=uri, table_name=TABLE)
        for nodes in batches:
            store.add(nodes)

    return write


def _rows_merged(batches: list[list[dict[str, Any]]]) -> Callable[[str], None]:
    def write(uri: str) -> None:
        table = rqs.open_table(lancedb.connect(uri), TABLE)
        for rows in batches:
            merge = table.merge_insert("id")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    return write


if __name__ == "__main__":
    typer.run(main)
