"""Shortlists: parts of them, and what lies on either side of a distance."""

import numpy as np
from small_scans import ids_of, rows_of

from rqmoe_store.search.segments import Shortlist, sides_of


def test_parts_of_a_shortlist() -> None:
    rows = rows_of(3, 10)
    shortlist = Shortlist(np.arange(10, dtype=np.float32)[::-1].copy(), rows)
    assert shortlist.best(20) is shortlist
    assert ids_of(shortlist.best(3)) == sorted(rows.row_ids_N[-3:].tolist())
    assert ids_of(shortlist.only(rows.row_ids_N[:4])) == sorted(rows.row_ids_N[:4].tolist())
    assert len(shortlist.joined(shortlist)) == 20


def test_sides_share_no_score_and_leave_none_out() -> None:
    (every,) = sides_of(None)
    beyond, within = sides_of(0.5)
    for score in (-1.0, 0.49, 0.5, 3.0):
        assert every.low <= score < every.high
        assert (beyond.low <= score < beyond.high) != (within.low <= score < within.high)
    assert (beyond.sign, within.sign) == (1, -1)
