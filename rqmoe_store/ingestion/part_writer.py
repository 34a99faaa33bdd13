"""One of several processes that ingest together: reads parts of a source, encodes them, and writes files.

The files belong to no version of the table until the process that shares out the parts commits them.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from rqmoe_store.errors import TableError
from rqmoe_store.ingestion.blocks import BlockReader
from rqmoe_store.ingestion.parts import Part
from rqmoe_store.ingestion.pieces import Piece
from rqmoe_store.ingestion.pipeline import encoded_block
from rqmoe_store.ingestion.prepare import row_tools
from rqmoe_store.ingestion.quarantine import BadRow
from rqmoe_store.ingestion.stages import ahead
from rqmoe_store.ingestion.streams import StreamPiece
from rqmoe_store.ingestion.writer import Content
from rqmoe_store.refusals import NamesRefusals
from rqmoe_store.store.appends import fragments_of, write_batches
from rqmoe_store.store.drift import DriftSums
from rqmoe_store.store.ingested import Done
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.table_place import TablePlace
from rqmoe_store.store.vector_arrays import rows_per_batch

_WAITING_BLOCKS = 2
"""Between reading and encoding, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartWork:
    """What a process must know to write parts; it can be sent there."""

    place: TablePlace
    """Of the table."""
    columns: Sequence[str]
    """Of the source, that are taken."""
    vector_column: str
    """What the source calls the vectors."""
    encode: bool
    """Whether rows get codes."""
    codecs: Sequence[str]
    """Fingerprints of the table's codecs, oldest first; the last one encodes."""
    quarantined: Mapping[str, Done] | None
    """Key of a piece -> up to where its bad rows are in quarantine; None for bad rows to be an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """A part that was written; it can be sent to the process that commits."""

    key: str
    """Of its piece."""
    start: int
    """Its first row."""
    fragments: Sequence[str]
    """The files, as JSON."""
    content: Content
    """What is in them."""
    arrow_bytes: int
    """What the rows read take in memory."""

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WrittenPart":
        """What `to_json` made into text."""
        values = json.loads(text)
        content = values["content"]
        content["bad"] = [BadRow(**row) for row in content["bad"]]
        content["pieces"] = {key: Done(*done) for key, done in content["pieces"].items()}
        content["drift"] = None if content["drift"] is None else DriftSums(**content["drift"])
        return cls(**{**values, "content": Content(**content)})


class PartWriter(NamesRefusals):
    """Writes parts, with one codec for all of them."""

    def __init__(self, work: PartWork, *, device: str = "auto") -> None:
        """Open the table.

        Args:
            work: of `share_pieces` or `share_rows`, in whichever process.
            device: where to encode, as in `Codec.to`.

        Raises:
            TableError: as `open_table`, or the table was given another codec meanwhile.
            ArtefactError: as `open_table`.
            InvalidInputError: a device that is not there.
        """
        self._work, self._store = work, StoredTable.open(work.place.connected(), work.place.name)
        self._encoder, self._checker = row_tools(self._store, work.vector_column, encode=work.encode)
        codecs = self._encoder.codecs
        if work.encode and fingerprints(codecs) != tuple(work.codecs):
            raise TableError(
                f"Table {self._store.name!r} was given another codec while rows were ingested into it. What "
                "is committed stays; ingest again."
            )
        if work.encode and codecs.newest is not None:
            codecs.newest.to(device)

    def write(self, part: Part) -> WrittenPart:
        """Write the rows of a part.

        Raises:
            InvalidInputError: it cannot be read, or has a bad row where that is an error.
            StorageError: the disk or bucket refuses to take it.
        """
        return self._write(part, part.start)

    def write_rows(self, rows: pa.Table, name: str) -> WrittenPart:
        """Write some rows of a source that has no parts and is called `name`. Raises as `write`."""
        return self._write(StreamPiece(iter(rows.to_batches()), name, None), 0)

    def _write(self, piece: Piece, start: int) -> WrittenPart:
        reader = BlockReader(
            checker=self._checker,
            columns=self._work.columns,
            block_rows=rows_per_batch(self._store.dim),
            done={piece.key: Done(piece.state, start)},
            quarantined=self._work.quarantined,
        )
        content, sizes = Content(), list[int]()
        batches = self._batches(reader, piece, content, sizes)
        written = write_batches(self._store.table, self._encoder.schema, batches)
        return WrittenPart(
            key=piece.key,
            start=start,
            fragments=fragments_of(written),
            content=content,
            arrow_bytes=sum(sizes),
        )

    def _batches(
        self, reader: BlockReader, piece: Piece, content: Content, sizes: list[int]
    ) -> Iterator[pa.RecordBatch]:
        """The rows as they are written; what is in them is noted in `content`, their bytes in `sizes`."""
        with ahead(reader.read([piece]), _WAITING_BLOCKS) as blocks:
            for block in blocks:
                encoded = encoded_block(self._encoder, block)
                content.add_block(encoded)
                sizes.append(block.arrow_bytes)
                yield from encoded.encoded.to_batches()


def fingerprints(codecs: TableCodec) -> tuple[str, ...]:
    """Of the codecs of a table, oldest first."""
    return tuple(mark.fingerprint for mark in codecs.marks.generations)
