"""`rqmoe bench search`, run in this process."""

import dataclasses
import json
import sys
from pathlib import Path

import lancedb
import numpy as np
import pytest
from failed_commands import message_of
from small_searches import clustered, small_codec
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.evaluation import search_benchmark
from rqmoe_store.evaluation.search_measurement import SyntheticResult, create_docs

pytestmark = pytest.mark.usefixtures("brief_timing")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Vectors as a file and as a table, queries, and a folder with a codec of 4 bytes."""
    np.save(tmp_path / "base.npy", clustered())
    np.save(tmp_path / "queries.npy", clustered(20, seed=1))
    create_docs(lancedb.connect(tmp_path / "db"), clustered())
    small_codec().save(tmp_path / "codecs" / "rq-4")
    return tmp_path


def search(data: Path, *options: object, queries: bool = True):
    """`bench search` with the codec of the folder, quickly; a later option replaces an earlier one."""
    arguments = [
        "bench", "search", "--bytes", 4, "--kind", "rq", "--codecs", data / "codecs", "--device", "cpu",
        "--systems", "ours", "--nprobes", "1,2", "--shortlists", 50, "--timed-queries", 5, *options,
    ]  # fmt: skip
    if queries:
        arguments += ["--queries", data / "queries.npy"]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(data: Path, *options: object, queries: bool = True) -> str:
    """The message of a mistake, which is found before anything is measured."""
    return message_of(search(data, *options, queries=queries), before="Measuring")


def test_prints_writes_and_draws(data, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rqmoe", "bench", "search", "--queries", "my queries.npy"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    outputs = ("--json", data / "out.json", "--plot", data / "out.png")
    run = search(data, "--vectors", data / "base.npy", "--systems", "ours,lancedb-ivf-pq", *outputs)
    assert run.exit_code == 0, run.output
    for heading in ("Search", "Cost", "of exhaustive", "queries/s", "resident"):
        assert heading in run.stdout
    assert "600 vectors of dimension 16; 20 queries; metric l2." in run.stdout
    assert "lancedb-ivf-pq, 4 bytes: indexed in" in run.stderr
    written = json.loads((data / "out.json").read_text())
    assert written["tables"].keys() >= {"search", "cost"}
    assert written["command"] == "rqmoe bench search --queries 'my queries.npy'"
    assert [index["system"] for index in written["indexes"]] == ["rq", "lancedb-ivf-pq"]
    assert written["data"]["rows_used"] == 600
    assert (data / "out.png").stat().st_size > 10_000


def test_a_table_is_read_cut_and_trained_on(data) -> None:
    options = ("--vectors", data / "db" / "docs.lance", "--rows", 560, "--partitions", 0, "--epochs", 0)
    run = search(data, *options, "--bytes", 2, "--codecs", data / "none")
    assert "There is no codec" in run.stderr
    arguments = ["bench", "search", "--queries", data / "queries.npy", "--bytes", 2, "--kind", "rq", *options]
    arguments += ["--systems", "ours", "--timed-queries", 5, "--shortlists", "10,20"]
    run = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert run.exit_code == 0, run.output
    assert "560 vectors (of 600) of dimension 16" in run.stdout


@pytest.mark.slow  # tests/evaluation/test_search_scaling.py opens a table in another process as well
def test_random_codes_alone(data) -> None:
    run = search(data, "--synthetic", "500,400", "--json", data / "out.json")
    assert run.exit_code == 0, run.output
    assert "Random codes of dimension 16; 20 queries" in run.stdout
    assert "Scaling" in run.stdout and "Cost" not in run.stdout
    assert "rq, 4 bytes, 500 rows, disk, nprobes 2" in run.stderr
    written = json.loads((data / "out.json").read_text())["synthetic"]
    assert [(row["rows"], row["cache"], row["nprobes"]) for row in written] == [
        (rows, cache, nprobes) for rows in (400, 500) for cache in ("memory", "disk") for nprobes in (1, 2)
    ]


@pytest.mark.parametrize("codecs", [True, False])
def test_random_codes_and_queries(data, codecs, monkeypatch) -> None:
    asked = []

    def measured(made, queries_QD, **settings):
        asked.append((made, queries_QD))
        fields = {field.name: 1 for field in dataclasses.fields(SyntheticResult)}
        return [SyntheticResult(**{**fields, "system": "rq", "cache": "memory"})]

    monkeypatch.setattr(search_benchmark, "measure_synthetic", measured)
    kind = ("--codecs", data / "codecs") if codecs else ("--dim", 8)
    arguments = [
        "bench",
        "search",
        "--synthetic",
        600,
        "--bytes",
        4,
        "--kind",
        "rq",
        "--device",
        "cpu",
        *kind,
    ]
    run = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert run.exit_code == 0, run.output
    dim = 16 if codecs else 8
    assert f"Random codes of dimension {dim}; 1,000 queries; metric l2." in run.stdout
    (((codec,), queries),) = asked
    assert codec.dim == dim and queries.shape == (1000, dim)


def test_mistakes_are_found_before_measuring(data) -> None:
    base = ("--vectors", data / "base.npy")
    assert "Got neither --vectors nor --synthetic" in fails(data)
    assert "Got --plot without --vectors" in fails(data, "--synthetic", 100, "--plot", data / "out.png")
    assert "Got --vectors without --queries" in fails(data, *base, queries=False)
    assert "Got dim=0" in fails(data, "--synthetic", 100, "--dim", 0, queries=False)
    assert "choose some of ours, lancedb-ivf-pq" in fails(data, *base, "--systems", "lancedb")
    assert "whole numbers" in fails(data, *base, "--nprobes", "all")
    assert "shortlists=(5,)" in fails(data, *base, "--shortlists", 5)
    assert "There is no codec" in fails(data, *base, "--bytes", "4,8")
    assert "metric is 'cosine'" in fails(data, *base, "--metric", "cosine")
    assert "kind='best' is unknown" in fails(data, *base, "--kind", "best")
    assert "Got --rows 0" in fails(data, *base, "--rows", 0)
    assert "600 vectors for 3 partitions" in fails(data, *base, "--partitions", 3)
    assert "Cannot read --vectors" in fails(data, "--vectors", data / "missing.npy")
    assert "Cannot write --json" in fails(data, *base, "--json", data)
    assert ".png, .svg, .pdf" in fails(data, *base, "--plot", data / "out.txt")
    assert "need" in fails(data, "--synthetic", 10**15)


@pytest.mark.parametrize(
    ("module", "options"),
    [("psutil", ()), ("faiss", ("--systems", "faiss-ivf-pq")), ("matplotlib", ("--plot", "out.png"))],
)
def test_missing_libraries_are_named_before_anything_is_read(data, monkeypatch, module, options) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = fails(data, "--vectors", data / "missing.npy", *options)
    assert f"Not installed: {module}" in message
    assert 'pip install "rqmoe-store[bench]"' in message


def test_help_names_everything() -> None:
    output = CliRunner().invoke(app, ["bench", "search", "--help"], env={"COLUMNS": "200"}).output
    for word in ("--synthetic", "--shortlists", "faiss-ivf-rq", "65,536", "rqmoe-store[bench]"):
        assert word in output
    assert "search" in CliRunner().invoke(app, ["bench", "--help"]).output
