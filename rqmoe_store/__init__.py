"""Vector compression for LanceDB: tables that keep a few bytes per embedding instead of the vectors.

Public names are imported on first use, so that `import rqmoe_store` and `rqmoe --help` do not wait for torch.
"""

from typing import TYPE_CHECKING, Any

from rqmoe_store.config import CodecConfig, MultiVectorConfig, TrainConfig
from rqmoe_store.errors import (
    ArtifactError,
    InvalidInputError,
    RQMoEError,
    StorageError,
    TableError,
    TableNotFoundError,
)
from rqmoe_store.presets import preset
from rqmoe_store.startup import import_quickly

if TYPE_CHECKING:
    from rqmoe_store.advice.advise import advise
    from rqmoe_store.async_table import AsyncCompressedTable
    from rqmoe_store.codecs.base import Codec, load_codec
    from rqmoe_store.codecs.codes import Codes
    from rqmoe_store.codecs.parallel import num_threads, set_num_threads
    from rqmoe_store.codecs.precision import set_rerank_precision
    from rqmoe_store.codecs.subject import RowResiduals
    from rqmoe_store.ingestion.job import IngestReport, ingest
    from rqmoe_store.managed_table import ManagedTable
    from rqmoe_store.multivector.fixed_dimensional import FixedDimensionalEncoder
    from rqmoe_store.search.reranker import DecodedReranker
    from rqmoe_store.search.text import words_query
    from rqmoe_store.store.value_conditions import (
        JsonField,
        all_of,
        any_of,
        as_json_value,
        column_condition,
        json_field,
        none_of,
    )
    from rqmoe_store.table import CompressedTable
    from rqmoe_store.tables import compress, create_table, open_table, open_table_async
    from rqmoe_store.training.relevance import tune_codec
    from rqmoe_store.training.trainer import add_refine_codes, train

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "AsyncCompressedTable",
    "Codec",
    "CodecConfig",
    "Codes",
    "CompressedTable",
    "DecodedReranker",
    "FixedDimensionalEncoder",
    "IngestReport",
    "InvalidInputError",
    "JsonField",
    "ManagedTable",
    "MultiVectorConfig",
    "RQMoEError",
    "RowResiduals",
    "StorageError",
    "TableError",
    "TableNotFoundError",
    "TrainConfig",
    "__version__",
    "add_refine_codes",
    "advise",
    "all_of",
    "any_of",
    "as_json_value",
    "column_condition",
    "compress",
    "create_table",
    "ingest",
    "json_field",
    "load_codec",
    "none_of",
    "num_threads",
    "open_table",
    "open_table_async",
    "preset",
    "set_num_threads",
    "set_rerank_precision",
    "train",
    "tune_codec",
    "words_query",
]

_LAZY = {
    "AsyncCompressedTable": "rqmoe_store.async_table",
    "Codec": "rqmoe_store.codecs.base",
    "Codes": "rqmoe_store.codecs.codes",
    "CompressedTable": "rqmoe_store.table",
    "DecodedReranker": "rqmoe_store.search.reranker",
    "FixedDimensionalEncoder": "rqmoe_store.multivector.fixed_dimensional",
    "IngestReport": "rqmoe_store.ingestion.job",
    "JsonField": "rqmoe_store.store.value_conditions",
    "ManagedTable": "rqmoe_store.managed_table",
    "RowResiduals": "rqmoe_store.codecs.subject",
    "add_refine_codes": "rqmoe_store.training.trainer",
    "advise": "rqmoe_store.advice.advise",
    "all_of": "rqmoe_store.store.value_conditions",
    "any_of": "rqmoe_store.store.value_conditions",
    "as_json_value": "rqmoe_store.store.value_conditions",
    "column_condition": "rqmoe_store.store.value_conditions",
    "compress": "rqmoe_store.tables",
    "create_table": "rqmoe_store.tables",
    "ingest": "rqmoe_store.ingestion.job",
    "json_field": "rqmoe_store.store.value_conditions",
    "load_codec": "rqmoe_store.codecs.base",
    "none_of": "rqmoe_store.store.value_conditions",
    "num_threads": "rqmoe_store.codecs.parallel",
    "set_num_threads": "rqmoe_store.codecs.parallel",
    "set_rerank_precision": "rqmoe_store.codecs.precision",
    "open_table": "rqmoe_store.tables",
    "open_table_async": "rqmoe_store.tables",
    "train": "rqmoe_store.training.trainer",
    "tune_codec": "rqmoe_store.training.relevance",
    "words_query": "rqmoe_store.search.text",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_quickly(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
