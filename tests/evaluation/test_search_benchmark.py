"""The comparison of searches on small data: its settings, its codecs, and the whole."""

import dataclasses
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small_searches import CONFIG, DIM, PARTITIONS, ROWS, TRAINING, clustered, small_codec

from rqmoe_store.codecs.base import load_codec
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import ArtifactError, InvalidInputError
from rqmoe_store.evaluation.peer_names import missing_peers
from rqmoe_store.evaluation.search_benchmark import SearchSettings, benchmark_search, load_codecs, train_codec
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
    assert names == [*expected, ("lancedb-ivf-rq", 22)]
    counts = [sum((r.system, r.code_bytes) == name for r in report.results) for name in names]
    assert counts == [4, 4, 2, 2, 4, 4, 2, 2, 4]
    assert {scan.system for scan in report.scans} == {"rq", "faiss-ivf-pq", "faiss-ivf-rq"}
    assert {index.num_partitions for index in report.indexes} == {PARTITIONS}


def test_refine_codes_are_searched_at_the_total_of_bytes() -> None:
    report = benchmark(clustered(), systems=("ours",), code_bytes=(2,), refine_bytes=(6, DIM))
    names = [(index.system, index.code_bytes) for index in report.indexes]
    assert names == [("rq", 2), ("rq-2+pq", 8), ("rq-2+pq", 2 + DIM)]
    exhaustive = [index.exhaustive_recall for index in report.indexes]
    assert exhaustive == sorted(exhaustive)
    shortlists = {r.setting.shortlist for r in report.results if r.system == "rq-2+pq"}
    assert shortlists == {10, 600, None}
    # A shortlist of all rows finds what an exhaustive search finds.
    found = max(r.recall for r in report.results if r.code_bytes == 2 + DIM and r.setting.shortlist == 600)
    assert found == pytest.approx(exhaustive[-1], abs=0.02)


def test_systems_of_one_size_and_those_that_are_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch", None)
    systems = ("lancedb-ivf-rq-3", "faiss-ivf-sq-8", "usearch-i8")
    systems += () if missing_peers(["qdrant-scalar-8"]) else ("qdrant-scalar-8",)
    found = benchmark(clustered(), systems=systems, nprobes=(2,), shortlists=(10,))
    names = [name for name in systems if name != "usearch-i8"]
    assert [index.system for index in found.indexes] == names
    assert found.skipped == {"usearch-i8": "pip install usearch"}
    for index in found.indexes:
        assert index.total_bytes == pytest.approx(index.index_bytes + index.raw_bytes)
        assert (index.raw_bytes > 0) == (index.system in ("lancedb-ivf-rq-3", "qdrant-scalar-8"))
        assert max(r.recall for r in found.results if r.system == index.system) > 0.85


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
    assert best(report, "lancedb-ivf-rq", 22, factor=10) > 0.95 > best(report, "lancedb-ivf-rq", 22)
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    small_codec().save(folder / "rq-4")
    return folder


def settings_for(folder, **changes) -> SearchSettings:
    settings = SearchSettings(codecs=folder, code_bytes=(4,), config=CONFIG, training=TRAINING)
    return dataclasses.replace(settings, **changes)


def test_codecs_are_found_by_kind_and_size(folder) -> None:
    codecs = load_codecs(settings_for(folder), DIM)
    assert list(codecs) == [4]
    assert codecs[4].fingerprint == load_codec(folder / "rq-4").fingerprint
    assert load_codecs(settings_for(None), DIM) == {}


def test_what_is_missing_or_does_not_fit(folder, tmp_path) -> None:
    with pytest.raises(InvalidInputError, match=r"no codec '.*rq-8'"):
        load_codecs(settings_for(folder, code_bytes=(4, 8)), DIM)
    with pytest.raises(InvalidInputError, match=r"no codec '.*rqmoe-4'"):
        load_codecs(settings_for(folder, config=dataclasses.replace(CONFIG, kind="rqmoe")), DIM)
    with pytest.raises(InvalidInputError, match="dimension 16"):
        load_codecs(settings_for(folder), DIM + 1)
    with pytest.raises(InvalidInputError, match="metric is 'cosine'"):
        load_codecs(settings_for(folder, config=dataclasses.replace(CONFIG, metric="cosine")), DIM)
    shutil.copytree(folder / "rq-4", tmp_path / "rq-8")
    with pytest.raises(InvalidInputError, match="has 4 code bytes; expected 8"):
        load_codecs(settings_for(tmp_path, code_bytes=(8,)), DIM)
    (tmp_path / "rq-4").mkdir()
    with pytest.raises(ArtifactError):
        load_codecs(settings_for(tmp_path), DIM)


@pytest.mark.parametrize(("partitions", "expected"), [(2, 2), (1, 0)])
def test_training(partitions, expected) -> None:
    codec, seconds = train_codec(settings_for(None), clustered(), 3, partitions)
    assert codec.config.code_bytes == 3
    assert codec.config.num_partitions == expected
    assert codec.config.codebook_size == 16
    assert seconds > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ("ours", "faiss")}, r"\['ours', 'faiss'\]; choose some of ours, lancedb-ivf-pq"),
        ({"systems": ()}, "choose some of"),
        ({"code_bytes": (8, 0)}, "code_bytes=0"),
        ({"nprobes": (1, 0)}, r"nprobes=\(1, 0\)"),
        ({"nprobes": ()}, "at least one of them"),
        ({"shortlists": (9,)}, "at least 10"),
        ({"batch": 0}, "batch=0"),
        ({"timed_queries": 0}, "timed_queries=0"),
        ({"synthetic": (0,)}, "numbers of rows from 1"),
    ],
)
def test_refused(changes, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SearchSettings(**changes)


def test_vectors_that_do_not_fit() -> None:
    settings = SearchSettings(code_bytes=(8, 16), config=CodecConfig(num_partitions=4))
    settings.require_fit(1024, 64)
    with pytest.raises(InvalidInputError, match="Got 1023 vectors for 4 partitions"):
        settings.require_fit(1023, 64)
    with pytest.raises(InvalidInputError, match=r"divide it; got \[16\].*lancedb-ivf-pq, faiss-ivf-pq"):
        settings.require_fit(1024, 40)
    with pytest.raises(InvalidInputError, match="Got 255 vectors for 1 partitions"):
        SearchSettings().require_fit(255, 384)
    with pytest.raises(InvalidInputError, match="multiple of 8; got 12"):
        SearchSettings(code_bytes=(4,)).require_fit(1024, 12)
    SearchSettings(systems=("ours", "faiss-ivf-rq"), code_bytes=(5,)).require_fit(1024, 12)


@pytest.mark.parametrize(("chosen", "expected"), [(None, 10), (0, 1), (1, 1), (7, 7)])
def test_partitions(chosen, expected) -> None:
    assert SearchSettings(config=CodecConfig(num_partitions=chosen)).partitions(2600) == expected


def test_settings_are_json() -> None:
    written = json.loads(json.dumps(SearchSettings(codecs=Path("codecs")).to_dict()))
    assert written["codecs"] == "codecs"
    assert written["code_bytes"] == [8, 16, 32]
    assert "code_bytes" not in written["config"]
