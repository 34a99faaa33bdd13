"""`rqmoe bench limit`, run in this process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from failed_commands import message_of
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.demo import texts
from rqmoe_store.evaluation.limit_data import make_limit_data


def limit(*options: object):
    return CliRunner().invoke(app, [str(argument) for argument in ("bench", "limit", *options)])


def test_searches_are_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are in the cache, where an earlier run would have put them: random ones."""
    data = make_limit_data(queries=10, documents=40)
    embedded = [*data.documents, *data.queries]
    vectors = np.random.default_rng(0).normal(size=(len(embedded), 16)).astype(np.float32)
    texts.embed_cached(embedded, tmp_path, lambda: lambda _: vectors, max_tokens=256)
    monkeypatch.setattr(sys, "argv", ["/bin/rqmoe", "bench", "limit", "--parts", "search"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sizes = ("--queries", 10, "--documents", 40, "--bytes", "2,4", "--hybrid-bytes", 4)
    outputs = ("--cache-dir", tmp_path, "--json", tmp_path / "limit.json")
    run = limit(*sizes, "--kind", "turboquant", "--parts", "search", *outputs)
    assert run.exit_code == 0, run.output
    for shown in ("first k of 40 documents", "full text", "hybrid, codes", "R@20"):
        assert shown in run.stdout
    written = json.loads((tmp_path / "limit.json").read_text())
    assert written["command"] == "rqmoe bench limit --parts search"
    assert list(written["tables"]) == ["small", "large"] and len(written["results"]) == 2 * 6
    words = next(row for row in written["tables"]["large"]["rows"] if row[0] == "full text")
    assert words == ["full text", "-", "1.000", "1.000", "1.000"]


def test_mistakes_are_found_before_anything_is_embedded(tmp_path: Path) -> None:
    assert "expected search, free" in message_of(limit("--parts", "all"), before="Batches")
    assert "hybrid search of some" in message_of(limit("--bytes", 8), before="Batches")
    assert "expected 46" in message_of(limit("--documents", 20), before="Batches")
    assert "expected 'float32' or" in message_of(limit("--precision", "float16"), before="Batches")
    assert "ascending" in message_of(limit("--dims", "4,3"), before="Batches")
    assert "'best' is unknown" in message_of(limit("--kind", "best"), before="Batches")
    assert "--json" in message_of(limit("--json", tmp_path / "none" / "limit.json"), before="Batches")
