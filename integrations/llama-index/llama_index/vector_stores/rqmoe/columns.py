"""The columns of a table of nodes."""

import dataclasses

import pyarrow as pa

ID = "id"
METADATA = "metadata"
NODE = "node"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeColumns:
    """Names of the columns; the defaults are those of LlamaIndex's LanceDB store.

    `ID` holds the node's id and is the table's key, `METADATA` the JSON that filters read, and `NODE`
    everything else of the node as JSON text.
    """

    text: str = "text"
    """The node's text, which full-text search reads."""
    document: str = "doc_id"
    """Id of the document that the node comes from; null for none."""
    vector: str = "vector"
    """The embedding; null once a code has replaced it."""

    @property
    def stored(self) -> list[str]:
        """The columns that a node is read from."""
        return [ID, self.text, NODE, self.vector]

    @property
    def without_vector(self) -> pa.Schema:
        """All columns but that of embeddings."""
        return pa.schema(
            [
                pa.field(ID, pa.string(), nullable=False),
                pa.field(self.document, pa.string()),
                pa.field(self.text, pa.string()),
                pa.field(METADATA, pa.json_(pa.string())),
                pa.field(NODE, pa.string()),
            ]
        )

    def schema(self, dim: int) -> pa.Schema:
        """The schema of a table for embeddings of `dim` components."""
        return self.without_vector.append(pa.field(self.vector, pa.list_(pa.float32(), dim)))
