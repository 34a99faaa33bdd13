"""All operations that processes are killed in the middle of."""

from killed.codecs import Register, Save
from killed.ingestion import Ingest, IngestNew
from killed.jobs import (
    BuildGraph,
    CompressInPlace,
    CompressInto,
    CompressLists,
    Create,
    Optimize,
    Retrain,
    RetrainInBackground,
    RetrainWithAndWithout,
    Train,
    TuneCodec,
)
from killed.operation import Operation
from killed.rows import Add, Delete, Merge, Update

OPERATIONS: list[Operation] = [
    Create(),
    Add(),
    Merge(),
    Update(),
    Delete(),
    CompressInPlace("compress in place"),
    CompressInto(),
    CompressLists(),
    Train("train"),
    Retrain("retrain"),
    Optimize(),
    BuildGraph(),
    TuneCodec(),
    Ingest("ingest"),
    Save(),
    Register(),
]
VARIANTS: list[Operation] = [
    CompressInPlace("compress in place, vectors kept", keep_vectors="float32", nulls=False),
    CompressInPlace("compress in place, row ids not stable", stable=False),
    Retrain("retrain, vectors kept", keep_vectors="float16"),
    RetrainInBackground("retrain in the background"),
    RetrainWithAndWithout("retrain, refine codes come"),
    RetrainWithAndWithout("retrain, refine codes go", refine_bytes=RetrainWithAndWithout.REFINE_BYTES),
    IngestNew("ingest into a new table"),
]
"""Operations that go the same way as others of them, for the most part."""
