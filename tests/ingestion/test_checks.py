"""Which rows can be encoded, whatever is wrong with the others."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sources import DIM, rows_of

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.blocks import RowChecker
from rqmoe_store.store.creation import create_coded
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.table_codec import TableCodec

NUMBER = pa.list_(pa.float32(), DIM)


def checker_of(db, codec, *, keep="none", name="docs", column="vector"):
    schema = pa.schema(
        [
            pa.field("id", pa.int32(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("vector", NUMBER),
        ]
    )
    table, metadata = create_coded(db, name, schema, codec=codec, vector_column="vector", keep_vectors=keep)
    encoder = RowEncoder(table.schema, TableCodec.of(metadata, [codec]), table_name=name, encode=True)
    return RowChecker(encoder, column, dim=DIM, metric=codec.config.metric)


DEFECTS = {
    "short": lambda row: row.update(vector=row["vector"][:5]),
    "empty": lambda row: row.update(vector=[]),
    "nan": lambda row: row["vector"].__setitem__(3, float("nan")),
    "inf": lambda row: row["vector"].__setitem__(0, float("-inf")),
    "hole": lambda row: row["vector"].__setitem__(1, None),
    "null id": lambda row: row.update(id=None),
    "great id": lambda row: row.update(id=2**40),
    "short, null id": lambda row: row.update(id=None, vector=[1.0]),
}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(defects=st.lists(st.sampled_from([None, None, "no vector", *DEFECTS]), max_size=30))
def test_good_rows_are_told_from_bad_ones(checker, defects):
    rows = rows_of(len(defects)).to_pylist()
    for row, defect in zip(rows, defects, strict=True):
        if defect == "no vector":
            row["vector"] = None
        elif defect is not None:
            DEFECTS[defect](row)
    lists = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float64()))])
    checked, bad = checker.check(pa.Table.from_pylist(rows, schema=lists))
    assert sorted(bad) == [row for row, defect in enumerate(defects) if defect in DEFECTS]
    good = [row for row, defect in enumerate(defects) if defect not in DEFECTS]
    assert checked.others["id"].to_pylist() == good
    assert checked.others.schema.names == ["id", "text"]
    assert checked.valid_N.tolist() == [defects[row] is None for row in good]
    expected = [rows[row]["vector"] for row in good if rows[row]["vector"] is not None]
    np.testing.assert_allclose(checked.vectors_VD, np.array(expected).reshape(-1, DIM), rtol=1e-6)


@pytest.fixture(scope="module")
def checker(tmp_path_factory, codec):
    import lancedb

    return checker_of(lancedb.connect(tmp_path_factory.mktemp("checks")), codec)


def test_reasons(checker):
    rows = rows_of(8).to_pylist()
    for row, defect in zip(rows, DEFECTS, strict=True):
        DEFECTS[defect](row)
    _, bad = checker.check(pa.Table.from_pylist(rows))
    reasons = dict(zip(DEFECTS, (bad[row] for row in range(8)), strict=True))
    assert (
        reasons["short"] == reasons["short, null id"] == "vector with another dimension than the codec's 16"
    )
    assert "NaN or infinite" in reasons["nan"] and "missing" in reasons["hole"]
    assert reasons["null id"] == "column 'id' is null, which it may not be"
    assert "column 'id' cannot be read as int32 (" in reasons["great id"]


def test_zero_under_cosine(db, cosine_codec):
    rows = rows_of(3).to_pylist()
    rows[1]["vector"] = [0.0] * DIM
    _, bad = checker_of(db, cosine_codec).check(pa.Table.from_pylist(rows, schema=rows_of(0).schema))
    assert bad == {1: "vector with zeros only, which have no direction under metric='cosine'"}


def test_what_half_floats_cannot_hold(db, codec):
    rows = rows_of(4).to_pylist()
    rows[2]["vector"][5] = 1e5
    rows[3]["vector"] = None
    checked, bad = checker_of(db, codec, keep="float16").check(pa.Table.from_pylist(rows))
    assert bad == {2: "vector with components beyond 65,504, the range of float16"}
    assert checked.valid_N.tolist() == [True, True, False]


def test_vectors_of_another_name(db, codec):
    checked, bad = checker_of(db, codec, column="embedding").check(
        rows_of(3).rename_columns({"vector": "embedding"})
    )
    assert bad == {} and len(checked.vectors_VD) == 3


def test_text_that_is_numbers_here_and_there(checker):
    rows = rows_of(100)
    ids = [str(row) if row % 10 else "ten" for row in range(100)]
    checked, bad = checker.check(rows.set_column(0, "id", pa.array(ids)))
    assert sorted(bad) == list(range(0, 100, 10))
    assert checked.others["id"].to_pylist() == [row for row in range(100) if row % 10]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows.drop_columns("id"), InvalidInputError, "missing: id"),
        (lambda rows: rows.drop_columns("vector"), InvalidInputError, "missing: vector"),
        (lambda rows: rows.append_column("more", rows["id"]), InvalidInputError, "unknown: more"),
        (lambda rows: rows.set_column(2, "vector", rows["id"]), TableError, "expected a vector column"),
        (
            lambda rows: rows.set_column(2, "vector", pa.array([[1.0]] * 3, pa.list_(pa.float32(), 1))),
            InvalidInputError,
            "dimension 1",
        ),
        (
            lambda rows: rows.set_column(0, "id", pa.array([{"a": 1}] * 3)),
            InvalidInputError,
            "cannot be read as int32",
        ),
    ],
)
def test_what_no_row_can_mend_is_refused_at_once(checker, change, error, message):
    with pytest.raises(error, match=message):
        checker.require_schema(change(rows_of(3)).schema)


def test_columns_are_checked_with_every_part(checker):
    checker.require_schema(rows_of(3).schema)
    with pytest.raises(InvalidInputError, match="missing: vector"):
        checker.check(rows_of(3).drop_columns("vector"))
    with pytest.raises(InvalidInputError, match="expected vectors of 16"):
        checker.check(rows_of(3).set_column(2, "vector", rows_of(3)["id"]))
