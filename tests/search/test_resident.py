"""Filters of codes in memory are made of parts."""

from rqmoe_store.search.resident import conjunction, partition_filter
from rqmoe_store.store.sql import quoted


def test_combined_and_quoted() -> None:
    assert conjunction([]) is None
    assert conjunction(["(a)", "(b)"]) == "(a) AND (b)"
    assert quoted("a`b") == "`a``b`"
    assert partition_filter("vector_partition", [1, 4]) == "`vector_partition` IN (1, 4)"
