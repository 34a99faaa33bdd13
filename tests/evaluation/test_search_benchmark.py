"""The whole search benchmark on small data."""

import dataclasses
import io
import json
import tempfile

import numpy as np
import pytest
from rich.console import Console
from small_searches import CONFIG, PARTITIONS, ROWS, TRAINING, clustered, small_codec

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.search_benchmark import SearchSettings, benchmark_search
from rqmoe_store.evaluation.search_measurement import SearchReport

pytestmark = pytest.mark.usefixtures("brief_timing")

QUERIES = clustered(30, seed=1)
SETTINGS = SearchSettings(
    code_bytes=(4, 2),
    config=CONFIG,
    training=TRAINING,
    nprobes=(1, 2),
    shortlists=(10, 600),
    batch=16,
    timed_queries=5,
)


def benchmark(vectors=None, queries=QUERIES, on_done=lambda report: None, **changes) -> SearchReport:
    return benchmark_search(
        vectors,
        queries,
        settings=dataclasses.replace(SETTINGS, **changes),
        console=Console(file=io.StringIO()),
        on_done=on_done,
    )


@pytest.fixture(scope="module")
def report() -> SearchReport:
    return benchmark(clustered())


def test_every_system_at_every_size(report) -> None:
    names = [(index.system, index.code_bytes) for index in report.indexes]
    systems = ["rq", "lancedb-ivf-pq", "faiss-ivf-pq", "faiss-ivf-rq"]
    expected = [(system, size) for size in (2, 4) for system in systems]
    assert names == [*expected, ("lancedb-ivf-rq", 2)]
    counts = [sum((r.system, r.code_bytes) == name for r in report.results) for name in names]
    assert counts == [4, 4, 2, 2, 4, 4, 2, 2, 4]
    assert {scan.system for scan in report.scans} == {"rq", "faiss-ivf-pq", "faiss-ivf-rq"}
    assert {index.num_partitions for index in report.indexes} == {PARTITIONS}


def best(report, system, size, factor=None) -> float:
    wanted = system, size, factor
    return max(
        r.recall for r in report.results if (r.system, r.code_bytes, r.setting.refine_factor) == wanted
    )


def test_recall_is_plausible(report) -> None:
    for system in ("rq", "lancedb-ivf-pq", "faiss-ivf-pq", "faiss-ivf-rq"):
        # Twice the bytes find more or, where k-means ended badly, next to as much.
        assert best(report, system, 4) > best(report, system, 2) - 0.05
        assert best(report, system, 2) > 0.05
    assert best(report, "lancedb-ivf-rq", 2, factor=10) > 0.95 > best(report, "lancedb-ivf-rq", 2)
    for result in report.results:
        assert (result.share_of_exhaustive is not None) == (result.system == "rq")
        if result.system == "rq" and (result.setting.nprobes, result.setting.shortlist) == (2, 600):
            assert result.share_of_exhaustive == pytest.approx(1, abs=0.02)


def test_the_report_is_json(report) -> None:
    written = json.loads(json.dumps(report.to_dict()))
    assert written["settings"]["shortlists"] == [10, 600]
    assert written["machine"]["versions"]["lancedb"]
    assert written["results"][0]["setting"] == {"nprobes": 1, "shortlist": 10, "refine_factor": None}


def test_loaded_codecs_are_used(tmp_path) -> None:
    small_codec(metric="cosine", num_partitions=0).save(tmp_path / "rq-4")
    seen = []
    found = benchmark(
        2 * clustered(),
        3 * QUERIES,
        systems=("ours",),
        codecs=tmp_path,
        code_bytes=(4, 4),
        config=dataclasses.replace(CONFIG, metric="cosine"),
        on_done=lambda report: seen.append(len(report.results)),
    )
    (index,) = found.indexes
    assert (index.system, index.code_bytes, index.num_partitions) == ("rq", 4, 0)
    assert [result.setting.nprobes for result in found.results] == [None, None]
    assert seen == [2]


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt(report) -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(clustered(), systems=("ours",), code_bytes=(4,), on_done=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Got no vectors"),
        ({"vectors": clustered(), "queries": QUERIES[:, :5]}, "Queries: .*dimension 5; expected 16"),
        ({"vectors": clustered(), "queries": QUERIES[:0]}, "Got no queries"),
        ({"vectors": clustered(511)}, "511 vectors for 2 partitions"),
        ({"vectors": clustered(), "code_bytes": (3,)}, "divide it"),
        ({"vectors": np.full((ROWS, 16), np.nan)}, "NaN"),
    ],
)
def test_mistakes_are_found_before_anything_is_made(arguments, message, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InvalidInputError, match=message):
        benchmark(**arguments)
    assert list(tmp_path.iterdir()) == []
