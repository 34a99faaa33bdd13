"""The columns of a table of nodes."""

import dataclasses

import pyarrow as pa

ID = "id"
METADATA = "metadata"
NODE = "node"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeColumns:
    """Names of the columns; those that can be chosen are what LlamaIndex's LanceDB store calls them.

    `ID` holds the node's id and is the table's key, `METADATA` what filters look at, as JSON, and `NODE`
    everything else of the node, as JSON text.
    """

    text: str = "text"
    """The node's text, which full-text search reads."""
    document: str = "doc_id"
    """Id of the document that the node is a part of; null for none."""
    vector: str = "vector"
    """The embedding, or null once a code has replaced it."""

    @property
    def stored(self) -> list[str]:
        """The columns that a node is read from."""
        return [ID, self.text, NODE, self.vector]

    def schema(self, dim: int) -> pa.Schema:
        """The schema of a table for embeddings of `dim` components."""
        return pa.schema(
            [
                pa.field(ID, pa.string(), nullable=False),
                pa.field(self.document, pa.string()),
                pa.field(self.text, pa.string()),
                pa.field(METADATA, pa.json_(pa.string())),
                pa.field(NODE, pa.string()),
                pa.field(self.vector, pa.list_(pa.float32(), dim)),
            ]
        )
