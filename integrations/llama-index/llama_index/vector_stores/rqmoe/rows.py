"""Nodes as rows of a table, and rows as nodes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from llama_index.core.schema import BaseNode
from llama_index.vector_stores.rqmoe.columns import ID, METADATA, NODE, NodeColumns
from llama_index.vector_stores.rqmoe.nodes import node_json, node_of, text_of

from rqmoe_store import InvalidInputError


def dim_of(nodes: Sequence[BaseNode]) -> int:
    """Components of the nodes' embeddings.

    Raises:
        InvalidInputError: no nodes, ids that are no texts, missing embeddings, or several dimensions.
    """
    for node in nodes:
        if not isinstance(node, BaseNode):
            raise InvalidInputError(f"Got {type(node).__name__} to add; expected nodes of llama_index.core.")
        if not isinstance(node.node_id, str):
            raise InvalidInputError(f"Got a node with the id {node.node_id!r}; expected a text.")
        if not node.embedding:
            raise InvalidInputError(
                f"Node {node.node_id!r} has no embedding. Nothing was written; set it, or insert the nodes "
                "through VectorStoreIndex, which embeds them."
            )
        if len(node.embedding) != len(nodes[0].embedding or []):
            raise InvalidInputError(
                f"Node {node.node_id!r} has an embedding of dimension {len(node.embedding)}, node "
                f"{nodes[0].node_id!r} one of {len(nodes[0].embedding or [])}; expected the same. Nothing "
                "was written; embed all nodes with one model."
            )
    return len(nodes[0].embedding or [])


def rows_of(nodes: Sequence[BaseNode], columns: NodeColumns) -> pa.Table:
    """Nodes as rows; of several with the same id the last one.

    Raises:
        InvalidInputError: what `dim_of` and `node_json` refuse, or text that is no valid Unicode.
    """
    schema = columns.schema(dim_of(nodes))
    kept = list({node.node_id: node for node in nodes}.values())
    with np.errstate(over="ignore"):  # becomes infinite, which the table refuses and names
        vectors = np.array([node.embedding for node in kept], dtype=np.float32)
    try:
        filtered, contents = zip(*(node_json(node) for node in kept), strict=True)
        arrays = {
            ID: pa.array([node.node_id for node in kept], pa.string()),
            columns.document: pa.array([node.ref_doc_id for node in kept], pa.string()),
            columns.text: pa.array([text_of(node) for node in kept], pa.string()),
            METADATA: pa.array(filtered, pa.string()).cast(schema.field(METADATA).type),
            NODE: pa.array(contents, pa.string()),
        }
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"Got a text with half a character, {error.object[error.start : error.end]!r}, which UTF-8 "
            f"cannot hold ({error}). Nothing was written; remove it and try again."
        ) from error
    arrays[columns.vector] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def nodes_of(rows: pa.Table, columns: NodeColumns) -> list[BaseNode]:
    """The nodes of rows that have the columns `columns.stored`, in the same order."""
    values: dict[str, list[Any]] = {name: rows[name].to_pylist() for name in columns.stored}
    return [
        node_of(content, text, embedding)
        for content, text, embedding in zip(
            values[NODE], values[columns.text], values[columns.vector], strict=True
        )
    ]
