"""What becomes of vectors that cannot be used, beside what LanceDB makes of them."""

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.columns import KeptVectors
from rqmoe_store.store.row_encoder import BAD_VECTORS_RAISE, BadVectors
from rqmoe_store.tables import compress

DIM = 16
NAN, INF = float("nan"), float("inf")


def repaired(action, rows, fill_value=0.0, *, metric="l2", keep="float32") -> dict:
    """The vectors that are left, by position."""
    kept = KeptVectors(column="vector", keep=keep, dim=3, metric=metric)
    column, stays = BadVectors(action, fill_value).repaired(rows, kept)
    return {row: vector for row, vector in enumerate(column.to_pylist()) if stays[row]}


def column(rows, data_type=None) -> pa.Array:
    return pa.array(rows, data_type or pa.list_(pa.float32()))


BAD = {
    "short": [1.0, 2.0],
    "empty": [],
    "long": [1.0, 2.0, 3.0, 4.0],
    "nan": [1.0, NAN, 3.0],
    "infinite": [1.0, 2.0, -INF],
    "missing": [None, 2.0, 3.0],
}
FILLED = {
    "short": [1.0, 2.0, 9.0],
    "empty": [9.0, 9.0, 9.0],
    "long": [1.0, 2.0, 3.0],
    "nan": [1.0, 9.0, 3.0],
    "infinite": [1.0, 2.0, 9.0],
    "missing": [9.0, 2.0, 3.0],
}
GOOD = [4.0, 5.0, 6.0]


@pytest.mark.parametrize("kind", BAD)
def test_every_kind_of_bad_vector(kind) -> None:
    rows = column([GOOD, BAD[kind], GOOD])
    assert repaired("drop", rows) == {0: GOOD, 2: GOOD}
    assert repaired("null", rows) == {0: GOOD, 1: None, 2: GOOD}
    assert repaired("fill", rows, 9) == {0: GOOD, 1: FILLED[kind], 2: GOOD}


def test_errors_are_left_to_whoever_reads_the_vectors() -> None:
    rows = column([*BAD.values(), None])
    kept = KeptVectors(column="vector", keep="none", dim=3, metric="cosine")
    same, stays = BAD_VECTORS_RAISE.repaired(rows, kept)
    assert same is rows and stays.all()


def test_nulls_are_bad_for_drop_and_fill_alone() -> None:
    rows = column([None, GOOD])
    assert repaired("null", rows) == {0: None, 1: GOOD}
    assert repaired("drop", rows) == {1: GOOD}
    assert repaired("fill", rows, 1.5) == {0: [1.5] * 3, 1: GOOD}


def test_no_direction_under_cosine() -> None:
    rows = column([[0.0] * 3, GOOD, [0.0, NAN, 0.0]])
    assert repaired("drop", rows, metric="cosine") == {1: GOOD}
    assert repaired("null", rows, metric="cosine") == {0: None, 1: GOOD, 2: None}
    assert repaired("drop", rows) == {0: [0.0] * 3, 1: GOOD}
    # Not to be helped: an error when it is read.
    assert repaired("fill", rows, 2.0, metric="cosine") == {0: [0.0] * 3, 1: GOOD, 2: [0.0, 2.0, 0.0]}


def test_beyond_half_floats() -> None:
    tiny = float(np.float32(1e-9))
    rows = column([[1e5, 1.0, 2.0], [tiny] * 3])
    half = {"keep": "float16", "metric": "cosine"}
    assert repaired("drop", rows, **half) == {}
    assert repaired("null", rows, **half) == {0: None, 1: None}
    assert repaired("drop", rows, metric="cosine") == {0: [1e5, 1.0, 2.0], 1: [tiny] * 3}
    assert repaired("fill", rows, 3.0, keep="float16") == {0: [3.0, 1.0, 2.0], 1: [tiny] * 3}


@pytest.mark.parametrize(
    "data_type",
    [pa.list_(pa.float64()), pa.large_list(pa.float16()), pa.list_(pa.int32(), 4), pa.list_(pa.float32(), 2)],
)
def test_columns_of_every_type(data_type) -> None:
    width = data_type.list_size if pa.types.is_fixed_size_list(data_type) else 4
    rows = column([list(range(width)), None, list(range(width))], data_type).slice(1)
    assert repaired("fill", rows, 9.0) == {0: [9.0] * 3, 1: [0.0, 1.0, 2.0 if width > 2 else 9.0]}
    assert repaired("drop", rows) == {}


def test_settings_that_cannot_be_used() -> None:
    with pytest.raises(InvalidInputError, match="'error', 'drop', 'fill', 'null'"):
        BadVectors("ignore")
    for value in (NAN, INF, 1e300, None, "0", True):
        with pytest.raises(InvalidInputError, match=r"fill_value=.*finite number"):
            BadVectors("fill", value)
        BadVectors("drop", value)  # not used there


components = st.one_of(st.none(), st.just(NAN), st.floats(-9, 9, width=32))
some_vectors = st.lists(st.one_of(st.none(), st.lists(components, max_size=6)), min_size=1, max_size=8)


@given(rows=some_vectors, action=st.sampled_from(["drop", "fill", "null"]))
def test_as_lancedb_does(tmp_path_factory, rows, action) -> None:
    """But for components that are missing, which LanceDB puts into the table as they are."""
    rows = [vector and [NAN if value is None else value for value in vector] for vector in rows]
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), 3))])
    table = lancedb.connect(tmp_path_factory.mktemp("db")).create_table("docs", schema=schema)
    # One of another kind each, without which LanceDB looks at some columns in another way.
    rows = [GOOD, None, [1.0], *rows]
    table.add(
        pa.table({"id": range(len(rows)), "vector": column(rows)}), on_bad_vectors=action, fill_value=9.0
    )
    theirs = {row["id"]: row["vector"] for row in table.to_arrow().to_pylist()}
    assert repaired(action, column(rows), 9.0) == theirs


# In a table.


@pytest.fixture
def bad_rows(vectors) -> list[dict]:
    wanted = {1000: vectors[0], 1001: [NAN] * DIM, 1002: [1.0] * 3, 1003: None}
    return [{"id": row, "text": "new", "vector": vector} for row, vector in wanted.items()]


@pytest.mark.parametrize(
    ("action", "ids", "with_code"),
    [
        ("drop", [1000], [1000]),
        ("null", [1000, 1001, 1002, 1003], [1000]),
        ("fill", [1000, 1001, 1002, 1003], [1000, 1001, 1002, 1003]),
    ],
)
@pytest.mark.parametrize("keep", ["none", "float16"])
def test_add(docs, codec, bad_rows, vectors, action, ids, with_code, keep) -> None:
    store = compress(docs, codec, "store", keep_vectors=keep, progress=False)
    assert store.add(bad_rows, on_bad_vectors=action, fill_value=2.0) == len(ids)
    added = store.table.search().where("id >= 1000").to_arrow().sort_by("id")
    assert added["id"].to_pylist() == ids
    codes, valid = store.columns.from_arrow(added)
    assert [row for row, there in zip(ids, valid, strict=True) if there] == with_code
    wanted = [vectors[0], [2.0] * DIM, [1.0] * 3 + [2.0] * 13, [2.0] * DIM][: len(with_code)]
    np.testing.assert_array_equal(codes.codes, codec.encode(np.float32(wanted)).codes)
    if keep != "none":
        kept = [vector for vector in added["vector"].to_pylist() if vector is not None]
        np.testing.assert_array_equal(np.float32(kept), np.float16(wanted).astype(np.float32))


def test_adding_bad_vectors_alone(store) -> None:
    version = store.version
    rows = [{"id": 1000, "vector": [NAN] * DIM}]
    assert store.add(rows, on_bad_vectors="drop") == 0
    assert store.version == version
    with pytest.raises(InvalidInputError, match="on_bad_vectors='skip'"):
        store.add(rows, on_bad_vectors="skip")
    assert store.add(rows, on_bad_vectors="null") == 1
    assert store.table.count_rows("id = 1000 AND vector_code IS NULL") == 1


def test_what_filling_does_not_help(docs, cosine_codec) -> None:
    store = compress(docs, cosine_codec, "store", keep_vectors="float16", progress=False)
    version = store.version
    zeros = [{"id": 1000, "vector": [1.0] * DIM}, {"id": 1001, "vector": [0.0] * DIM}]
    with pytest.raises(InvalidInputError, match=r"zeros only.*rows 1"):
        store.add(zeros, on_bad_vectors="fill", fill_value=1.0)
    with pytest.raises(InvalidInputError, match=r"beyond 65,504.*rows 0"):
        store.add([{"id": 1000, "vector": [NAN] * DIM}], on_bad_vectors="fill", fill_value=1e6)
    assert store.version == version
