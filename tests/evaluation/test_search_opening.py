"""Measurements of the process that opens a table, taken in this process."""

import dataclasses

import lancedb
import numpy as np
import pytest
from small_searches import clustered, small_codec

from rqmoe_store.evaluation.search_measurement import SyntheticResult
from rqmoe_store.evaluation.search_scaling import create_random_table, measure_opening


@pytest.mark.parametrize(("partitions", "probes"), [(2, [1, 2]), (0, [None, None])])
def test_fields_are_those_of_a_result(partitions, probes, tmp_path) -> None:
    create_random_table(
        lancedb.connect(tmp_path), "random", small_codec(num_partitions=partitions), 500, seed=0
    )
    np.save(tmp_path / "queries.npy", clustered(3))
    found = measure_opening(tmp_path, "random", [1, 2], 5)
    assert [figures["nprobes"] for figures in found] == probes
    known = {"system", "code_bytes", "rows", "table_bytes"}
    fields = {field.name for field in dataclasses.fields(SyntheticResult)}
    for figures in found:
        assert figures.keys() == fields - known
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    first, second = found
    assert first["open_ms"] == second["open_ms"] and first["first_query_ms"] == second["first_query_ms"]
