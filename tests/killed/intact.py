"""Rows whose every value follows from their id and revision, and whether a table has them all, unharmed.

Shapes: N rows of a table, C of them coded, D components.
"""

import numpy as np
import pyarrow as pa
from lancedb.db import DBConnection

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table

DIM = 16
Contents = dict[int, int]
"""What a table holds: the revision of every row, by the row's id."""

_random = np.random.default_rng(3)
_VECTORS = (_random.normal(size=(4096, 6)) @ _random.normal(size=(6, DIM))).astype(np.float32)

_seen: dict[str, Codec] = {}
"""Codecs of all tables so far, by fingerprint."""


def has_vector(row: int) -> bool:
    return row % 11 != 10


def vectors_of(contents: Contents) -> np.ndarray:
    """Vectors (N, D) of rows in their order, zero where a row has none."""
    places = [(row * 31 + revision * 1009) % len(_VECTORS) for row, revision in contents.items()]
    given_N = np.array([has_vector(row) for row in contents], dtype=bool)
    return _VECTORS[np.array(places, dtype=int)] * given_N[:, None]


def rows_of(contents: Contents) -> pa.Table:
    """The rows, as they are given to a table."""
    values = pa.array(vectors_of(contents).ravel())
    missing = pa.array([not has_vector(row) for row in contents], pa.bool_())
    vector_type = pa.list_(pa.float32(), DIM)
    return pa.table(
        {
            "id": pa.array(contents.keys(), pa.int64()),
            "revision": pa.array(contents.values(), pa.int64()),
            "text": pa.array([_text(*row) for row in contents.items()], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(values, type=vector_type, mask=missing),
        }
    )


def assert_intact(db: DBConnection, name: str, *possible: Contents) -> int:
    """Open a table, verify it, and compare all there is in it, searches included, with what there must be.

    Args:
        db: its database.
        name: the table.
        possible: what was acknowledged, and what else there may be: that and calls that were not.

    Returns:
        Which of the possibilities it is.
    """
    store = open_table(db, name)
    report = store.verify(progress=False)
    assert report.ok, report
    names = ["id", "revision", "text", *store.columns.names, "vector"]
    stored = store.table.search().select(names).with_row_id(True).to_arrow().combine_chunks()
    ids = stored["id"].to_pylist()
    assert len(set(ids)) == len(ids) == len(set(stored["_rowid"].to_pylist()))
    contents = dict(zip(ids, stored["revision"].to_pylist(), strict=True))
    assert contents in possible, [_difference(contents, each) for each in (possible[0], possible[-1])]
    assert stored["text"].to_pylist() == [_text(*row) for row in contents.items()]
    _assert_searched(store, contents, _assert_vectors(store, stored, contents))
    return possible.index(contents)


def assert_untouched(stored: pa.Table, contents: Contents) -> None:
    """Compare a table without codes with the rows that were given to it."""
    given = rows_of(contents)
    assert stored.select(given.column_names).cast(given.schema).sort_by("id").equals(given.sort_by("id"))


def _assert_vectors(store: CompressedTable, stored: pa.Table, contents: Contents) -> np.ndarray:
    """Every row has its vector or a code of it. Returns what searches compare with (N, D)."""
    vectors_ND = vectors_of(contents)
    given_N = np.array([has_vector(row) for row in contents], dtype=bool)
    codes, coded_N = store.columns.from_arrow(stored)
    raw_N = stored["vector"].is_valid().to_numpy()
    assert np.array_equal(given_N, coded_N | raw_N)
    assert np.array_equal(raw_N, given_N if store.kept.kept else given_N & ~coded_N)
    kept_ND = np.stack(stored["vector"].filter(pa.array(raw_N)).to_numpy()) if raw_N.any() else vectors_ND[:0]
    assert np.array_equal(kept_ND, vectors_ND[raw_N].astype(kept_ND.dtype))
    if coded_N.any():
        right_C = np.zeros(len(codes), dtype=bool)
        for made in _possible_codes(store.codecs, vectors_ND[coded_N]):
            same_C = (made.codes == codes.codes).all(axis=1) & (made.partitions == codes.partitions)
            if codes.refine is not None:  # zeros where a row has none
                refine_CR = np.zeros_like(codes.refine) if made.refine is None else made.refine
                same_C &= (refine_CR == codes.refine).all(axis=1)
            right_C |= same_C
        assert right_C.all(), np.array(list(contents))[coded_N][~right_C]
        vectors_ND[coded_N] = store.codecs.decode(codes)
    return vectors_ND


def _possible_codes(codecs: TableCodec, vectors_ND: np.ndarray) -> list[Codes]:
    """All codes that vectors may have: by any codec, of the vectors or of what an older one made of them."""
    possible, versions = [], [vectors_ND]
    for generation in codecs.generations:
        # Once no row needs a codec any more, the database may have lost it; another check has seen it before.
        fingerprint = generation.metadata.fingerprint
        codec = _seen[fingerprint] = _seen.get(fingerprint) or generation.codec
        made = [codec.encode(version_ND) for version_ND in versions]
        versions += [codec.decode(each) for each in made]
        first = np.int32(generation.first_partition)
        possible += [Codes(each.codes, each.partitions + first, each.refine) for each in made]
    return possible


def _assert_searched(store: CompressedTable, contents: Contents, vectors_ND: np.ndarray) -> None:
    """Searches find every row that has a vector once, at its distance, and rows by id and text."""
    found = {row: vector for row, vector in zip(contents, vectors_ND, strict=True) if has_vector(row)}
    for row in list(contents)[::97]:
        assert store.table.count_rows(f"id = {row}") == 1
    if any(index.columns == ["text"] for index in store.table.list_indices()):
        wanted = {row for row in contents if row % 7 == 3}
        hits = store.search("word3", "fts").select(["id"]).limit(len(contents) + 1).to_list()
        assert sorted(hit["id"] for hit in hits) == sorted(wanted)
    if not found:
        return
    everything = len(found) + 1
    query = next(iter(found.values())) + np.float32(0.01)
    expected = {row: np.square(query - vector).sum() for row, vector in found.items()}
    for cache in ("memory", "disk"):
        search = store.use_cache(cache).search(query).nprobes(1000).shortlist(everything).limit(everything)
        hits = search.select(["id"]).to_arrow()
        assert sorted(hits["id"].to_pylist()) == sorted(found)
        distances = [expected[row] for row in hits["id"].to_pylist()]
        close = 0.02 if store.columns.refine_bytes else 1e-3  # two bytes of a refine code are for the length
        np.testing.assert_allclose(hits["_distance"].to_numpy(), distances, rtol=1e-3, atol=close)


def _text(row: int, revision: int) -> str:
    return f"row {row} revision {revision} word{row % 7}"


def _difference(contents: Contents, wanted: Contents) -> str:
    missing, surplus = wanted.items() - contents.items(), contents.items() - wanted.items()
    return f"missing: {sorted(missing)}; surplus: {sorted(surplus)}"
