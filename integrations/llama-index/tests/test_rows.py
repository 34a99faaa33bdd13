"""Nodes as rows."""

from typing import Any

import pytest
from llama_index.vector_stores.rqmoe.columns import ID, NodeColumns
from llama_index.vector_stores.rqmoe.rows import dim_of, nodes_of, rows_of
from small_nodes import node

from rqmoe_store import InvalidInputError

COLUMNS = NodeColumns(text="words", document="source", vector="embedding")


def test_rows_have_the_columns_that_were_chosen() -> None:
    rows = rows_of([node("a", document="d"), node("b")], COLUMNS)
    assert rows.column_names == [ID, "source", "words", "metadata", "node", "embedding"]
    assert rows["source"].to_pylist() == ["d", None]
    assert rows.schema == COLUMNS.schema(2)


def test_rows_are_the_nodes() -> None:
    nodes = [node("a", [0.5, 0.25], document="d", n=1), node("b")]
    assert nodes_of(rows_of(nodes, COLUMNS), COLUMNS) == nodes


def test_of_one_id_the_last_node_counts() -> None:
    rows = rows_of([node("a", n=1), node("b"), node("a", n=2)], COLUMNS)
    found = nodes_of(rows, COLUMNS)
    assert sorted((one.node_id, one.metadata.get("n")) for one in found) == [("a", 2), ("b", None)]


@pytest.mark.parametrize("embedding", [None, []])
def test_nodes_without_embeddings(embedding: Any) -> None:
    lacking = node("lacking")
    lacking.embedding = embedding
    with pytest.raises(InvalidInputError, match="'lacking' has no embedding"):
        dim_of([node("a"), lacking])


def test_several_dimensions() -> None:
    with pytest.raises(InvalidInputError, match="'b' has an embedding of dimension 3, node 'a' one of 2"):
        dim_of([node("a"), node("b", [1.0, 2.0, 3.0])])


def test_what_is_no_node() -> None:
    with pytest.raises(InvalidInputError, match="Got str to add"):
        dim_of(["text"])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="the id 5"):
        dim_of([node("a").model_copy(update={"id_": 5})])


@pytest.mark.parametrize("part", ["text", "id", "document", "metadata", "key"])
def test_halves_of_characters(part: str) -> None:
    bad = "a\ud800"
    nodes = {
        "text": node("a", text=bad),
        "id": node(bad),
        "document": node("a", document=bad),
        "metadata": node("a", author=bad),
        "key": node("a", **{bad: 1}),
    }
    with pytest.raises(InvalidInputError, match="half a character"):
        rows_of([nodes[part]], COLUMNS)
