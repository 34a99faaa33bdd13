"""Rows that wait for the last of them."""

import pyarrow as pa
import pytest
from pyarrow.lib import ArrowInvalid

from rqmoe_store.store import spooled_rows
from rqmoe_store.store.spooled_rows import spooled

PARTS = [pa.table({"id": [1, 2], "text": ["a", None]}), pa.table({"id": [3], "text": ["c"]})]


@pytest.mark.parametrize("limit", [1, 2**20])
def test_rows_are_read_again_and_again(monkeypatch, limit) -> None:
    monkeypatch.setattr(spooled_rows, "SPOOL_BYTES", limit)
    with spooled(iter(PARTS)) as rows:
        assert (rows.count, rows.schema) == (3, PARTS[0].schema)
        for _ in range(2):
            assert rows.reader().read_all().equals(pa.concat_tables(PARTS))
        rows.reader().read_next_batch()  # given up in the middle
        assert rows.reader().read_all().num_rows == 3


def test_no_rows() -> None:
    with spooled([]) as rows:
        assert (rows.count, rows.schema) == (0, None)
    with spooled([PARTS[0].slice(0, 0)]) as rows:
        assert (rows.count, rows.schema) == (0, PARTS[0].schema)


def test_what_goes_wrong_on_the_way() -> None:
    def parts():
        yield PARTS[0]
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"), spooled(parts()):
        raise AssertionError("never reached")
    other = PARTS[1].select(["id"])
    with pytest.raises(ArrowInvalid), spooled([PARTS[0], other]):
        raise AssertionError("never reached")
