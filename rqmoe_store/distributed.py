"""Distributed ingestion and search: what adapters of cluster frameworks (Ray, Spark, Dask) are made of.

**Ingestion.** One process, the driver, shares out the pieces of a source. Workers encode and write them, and
the driver commits what they have written, each part once, with a note of the rows of the source that it has:

    shared = share_pieces(prepare("s3://bucket/rows/", (db, "docs")), IngestSettings(), part_bytes=2**27)
    for part in shared.parts:  # on workers, in any order
        writer = PartWriter(shared.work)  # one per worker
        shared.take(writer.write(part))
    print(shared.finish())

A part that is lost or written twice does no harm. If the driver is lost, the same call goes on after the last
commit. `share_rows` does the same for rows without places in a source, such as those of a dataset in memory.

**Search.** `CompressedTable.use_shards` sends the scan of a search to `Shard`s in other processes, each of
which holds the codes of some fragments of the table. `TablePlace.of(table.table)` says where a `Shard` finds
it.

**Training** in several processes needs nothing from here: every worker calls `rqmoe_store.train`. `Artifact`
holds a codec as text and bytes, to send it back.
"""

from rqmoe_store.codecs.artifact import Artifact
from rqmoe_store.ingestion.filesystems import absolute
from rqmoe_store.ingestion.job import COMMIT_ROWS, IngestSettings, OnBadRows
from rqmoe_store.ingestion.pieces import Part
from rqmoe_store.ingestion.prepare import prepare
from rqmoe_store.ingestion.shared import (
    PART_BYTES,
    PartWork,
    PartWriter,
    WrittenPart,
    share_pieces,
    share_rows,
)
from rqmoe_store.ingestion.sources import rows_source
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.shards import Shard, ShardPart
from rqmoe_store.store.databases import TablePlace

__all__ = [
    "COMMIT_ROWS",
    "PART_BYTES",
    "Artifact",
    "CompressedQuery",
    "IngestSettings",
    "OnBadRows",
    "Part",
    "PartWork",
    "PartWriter",
    "Shard",
    "ShardPart",
    "TablePlace",
    "WrittenPart",
    "absolute",
    "prepare",
    "rows_source",
    "share_pieces",
    "share_rows",
]
