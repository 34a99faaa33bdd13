"""Rows that wait for their table: read again as they were, and in a form that can be stored."""

import decimal

import pyarrow as pa
import pytest

from rqmoe_store.store import creation
from rqmoe_store.store.creation import spool
from rqmoe_store.tables import create_table


@pytest.mark.parametrize("spool_bytes", [1, 2**20])
def test_rows_are_read_again_and_again(monkeypatch, spool_bytes):
    monkeypatch.setattr(creation, "SPOOL_BYTES", spool_bytes)
    parts = [pa.table({"text": [f"row {row}"], "number": [row]}) for row in range(5)]
    with spool(iter(parts)) as rows:
        assert (rows.count, rows.schema) == (5, parts[0].schema)
        for _ in range(2):
            assert rows.reader().read_all().equals(pa.concat_tables(parts))


def test_no_rows():
    with spool(iter(())) as none:
        assert (none.count, none.schema) == (0, None)
    empty = pa.table({"text": pa.array([], pa.string())})
    with spool([empty]) as none:
        assert (none.count, none.schema) == (0, empty.schema)


def test_what_goes_wrong_on_the_way():
    part = pa.table({"text": ["a"], "number": [1]})

    def parts():
        yield part
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"), spool(parts()):
        raise AssertionError("never reached")
    with pytest.raises(pa.ArrowInvalid), spool([part, part.select(["text"])]):
        raise AssertionError("never reached")


@pytest.mark.parametrize("data_type", [pa.decimal128(20, 2), pa.decimal256(50, 2)])
def test_wide_numbers_can_be_stored(db, data_type):
    schema = pa.schema([("text", pa.string()), ("price", data_type), ("vector", pa.list_(pa.float32(), 4))])
    store = create_table(db, "docs", schema=schema)
    prices = [decimal.Decimal(f"{number}.25") for number in range(20)]
    for length in range(4):  # moves what comes after the texts
        store.add([{"text": "x" * length, "price": price, "vector": [1.0] * 4} for price in prices])
    assert store.table.to_arrow()["price"].to_pylist() == prices * 4
