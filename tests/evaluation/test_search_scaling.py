"""Tables of random codes are ordinary compressed tables, and are opened in another process."""

import dataclasses
import tempfile

import lancedb
import numpy as np
import pytest
from small_searches import DIM, PARTITIONS, clustered, small_codec

from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.evaluation import search_scaling
from rqmoe_store.evaluation.search_measurement import SyntheticResult
from rqmoe_store.evaluation.search_scaling import (
    create_random_table,
    measure_opening,
    measure_synthetic,
    random_codec,
    random_queries,
    require_room,
)
from rqmoe_store.tables import open_table

CODEC = small_codec()

QUERIES = clustered(5)


def columns_of(store) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = store.table.search().limit(None).to_arrow()
    codes, valid = store.columns.from_arrow(rows)
    assert valid.all()
    return rows["id"].to_numpy(), codes.codes, codes.partitions


def test_a_random_table_is_a_compressed_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search_scaling, "_BATCH_ROWS", 1000)
    db = lancedb.connect(tmp_path)
    create_random_table(db, "random", CODEC, 3500, seed=1)
    store = open_table(db, "random")
    assert store.codec.fingerprint == CODEC.fingerprint
    ids, codes, partitions = columns_of(store)
    np.testing.assert_array_equal(ids, np.arange(3500))
    assert (np.diff(partitions) >= 0).all()
    shares = np.bincount(partitions) / 3500
    assert len(shares) == PARTITIONS and (abs(shares - 1 / PARTITIONS) < 0.1).all()
    assert codes.shape == (3500, 4) and set(np.unique(codes)) == set(range(16))
    assert [index.columns for index in store.table.list_indices()] == [["vector_partition"]]
    assert len(store.search(QUERIES[0]).limit(10).to_list()) == 10
    again = create_random_table(db, "again", CODEC, 3500, seed=1)
    np.testing.assert_array_equal(columns_of(again)[1], codes)


def test_without_partitions(tmp_path) -> None:
    codec = small_codec(num_partitions=0)
    store = create_random_table(lancedb.connect(tmp_path), "random", codec, 20, seed=0)
    assert (columns_of(store)[2] == 0).all()
    assert list(store.table.list_indices()) == []


@pytest.mark.parametrize("caches", [("disk",), pytest.param(("memory", "disk"), marks=pytest.mark.slow)])
def test_a_table_is_measured_and_removed(caches, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search_scaling, "_CACHES", caches)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = []
    settings = {"rows": (1000,), "nprobes": (1, 50), "timed_queries": 4, "seed": 0}
    results = list(measure_synthetic([CODEC], QUERIES, **settings, on_start=said.append))
    assert said == ["rq, 4 bytes: 1,000 rows of random codes"]
    assert [result.nprobes for result in results] == [1, PARTITIONS] * len(caches)
    assert [result.cache for result in results] == [cache for cache in caches for _ in range(2)]
    for result in results:
        assert (result.system, result.code_bytes, result.rows) == ("rq", 4, 1000)
        assert 2 < result.table_bytes < 12  # LanceDB packs codes of 16 codewords
        assert result.open_ms > 0 and result.first_query_ms > 0 and 0 < result.p50_ms <= result.p99_ms
        assert 0 < result.memory_growth_bytes < result.memory_bytes
        assert result.load_growth_bytes >= 0 and result.refresh_ms > 0
    assert list(tmp_path.iterdir()) == []


def test_a_codec_of_random_vectors(tmp_path) -> None:
    config = dataclasses.replace(CODEC.config, num_partitions=30)
    codec = random_codec(config, DIM, seed=4)
    assert (codec.num_partitions, codec.dim, codec.config.code_bytes) == (30, DIM, 4)
    assert len(create_random_table(lancedb.connect(tmp_path), "random", codec, 50, seed=0)) == 50
    assert random_codec(config, DIM, seed=4).fingerprint == codec.fingerprint
    assert random_codec(config, DIM, seed=5).fingerprint != codec.fingerprint


def test_random_queries() -> None:
    queries = random_queries(DIM, 30, seed=1)
    assert queries.shape == (30, DIM) and queries.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(queries, random_queries(DIM, 30, seed=1))
    assert not np.array_equal(queries, random_queries(DIM, 30, seed=2))


@pytest.mark.slow
def test_a_failure_in_the_other_process_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    wide = np.ones((2, DIM + 1), dtype=np.float32)
    with pytest.raises(RQMoEError, match="dimension 17; expected 16"):
        list(measure_synthetic([CODEC], wide, rows=(100,), nprobes=(1,), timed_queries=1, seed=0))
    assert list(tmp_path.iterdir()) == []


def test_no_room() -> None:
    require_room([4], (1000,))
    with pytest.raises(InvalidInputError, match="TMPDIR"):
        require_room([4], (10, 10**15))


@pytest.mark.parametrize(("partitions", "probes"), [(2, [1, 2]), (0, [None, None])])
def test_fields_are_those_of_a_result(partitions, probes, tmp_path) -> None:
    create_random_table(
        lancedb.connect(tmp_path), "random", small_codec(num_partitions=partitions), 500, seed=0
    )
    np.save(tmp_path / "queries.npy", clustered(3))
    found = measure_opening(tmp_path, "random", "memory", [1, 2], 5)
    assert [figures["nprobes"] for figures in found] == probes
    known = {"system", "code_bytes", "rows", "table_bytes"}
    fields = {field.name for field in dataclasses.fields(SyntheticResult)}
    for figures in found:
        assert figures.keys() == fields - known
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    first, second = found
    assert first["open_ms"] == second["open_ms"] and first["first_query_ms"] == second["first_query_ms"]
