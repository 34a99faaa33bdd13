"""Two result lists into one: a reranker sees comparable scores, the user the original ones.

Shape suffixes: R rows of one result list.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.rerankers import Reranker
from lancedb.rerankers.util import check_reranker_result

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.columns import DISTANCE, RELEVANCE, ROW_ID, SCORE

Normalization = Literal["score", "rank"]


def check_normalization(normalize: str) -> Normalization:
    """`normalize`; raises InvalidInputError unless it is one of the two."""
    if normalize not in get_args(Normalization):
        raise InvalidInputError(f"Got normalize={normalize!r}; expected 'score' or 'rank'.")
    return "rank" if normalize == "rank" else "score"


def fuse(
    vector_results: pa.Table,
    text_results: pa.Table,
    *,
    query: object,
    reranker: Reranker,
    normalize: Normalization,
) -> pa.Table:
    """The rows of both lists as `reranker` orders them, with `_relevance_score`.

    The reranker is given `_distance` and `_score` scaled to 0 to 1, by value or by rank, as LanceDB
    does; where it returns them they have their original values again, null for rows of the other list.

    Args:
        vector_results: nearest first, with `_distance` and `_rowid`.
        text_results: best first, with `_score` and `_rowid`.
        query: the text query, passed to the reranker.
        reranker: decides; `RRFReranker` and most others drop `_distance` and `_score` unless made
            with `return_score="all"`.
        normalize: what to scale, the values or their ranks.
    """
    if not len(vector_results) and not len(text_results):
        return _nothing(vector_results, text_results, reranker)
    fused = reranker.rerank_hybrid(
        query,  # type: ignore[arg-type]  # LanceDB passes structured queries here too
        _scaled(vector_results, DISTANCE, normalize),
        _scaled(text_results, SCORE, normalize),
    )
    check_reranker_result(fused)  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
    return _restored(_restored(fused, vector_results, DISTANCE), text_results, SCORE)


def values_of(rows: pa.Table, results: pa.Table, name: str) -> pa.ChunkedArray:
    """Column `name` of `results` for every one of `rows`, by row id; null where it is not among them."""
    return results[name].take(pc.index_in(rows[ROW_ID], results[ROW_ID].combine_chunks()))


def _nothing(vector_results: pa.Table, text_results: pa.Table, reranker: Reranker) -> pa.Table:
    # Not every reranker can do with two empty lists.
    empty = pa.concat_tables([vector_results, text_results], promote_options="default")
    if reranker.score == "relevance":
        empty = empty.drop_columns([DISTANCE, SCORE])
    return empty.append_column(RELEVANCE, pa.array([], pa.float32()))


def _scaled(results: pa.Table, name: str, normalize: Normalization) -> pa.Table:
    scores_R = results[name].to_numpy()
    if normalize == "rank":
        scores_R = _ranks(scores_R)
    place = results.schema.get_field_index(name)
    return results.set_column(place, results.field(place), pa.array(_to_unit_range(scores_R)))


def _to_unit_range(scores_R: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if len(scores_R) == 0:
        return scores_R
    exact_R = scores_R.astype(np.float64)  # the difference of two may be beyond float32
    spread = exact_R.max() - exact_R.min()
    shifted_R = exact_R - exact_R.min()
    return np.asarray(shifted_R if spread == 0 else shifted_R / spread, dtype=np.float32)


def _ranks(scores_R: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 for the smallest; equal scores in the order they come."""
    ranks_R = np.empty(len(scores_R), dtype=np.float32)
    ranks_R[np.argsort(scores_R, kind="stable")] = np.arange(1, len(scores_R) + 1)
    return ranks_R


def _restored(fused: pa.Table, results: pa.Table, name: str) -> pa.Table:
    if name not in fused.column_names:
        return fused
    place = fused.schema.get_field_index(name)
    return fused.set_column(place, results.schema.field(name), values_of(fused, results, name))
