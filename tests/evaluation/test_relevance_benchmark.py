"""`rqmoe bench relevance`: what it reads, measures and refuses."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.relevance_benchmark import read_relevance_data


def invoke(*arguments):
    return CliRunner().invoke(app, ["bench", "relevance", *map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    """Rows in 16 clusters, queries near rows of one, and two rows of the cluster that answer all of them."""
    random = np.random.default_rng(0)
    rows = np.repeat(random.normal(size=(16, 8)), 32, axis=0) + 0.2 * random.normal(size=(512, 8))
    asked = random.permutation(512)[:160]
    np.save(tmp_path / "base.npy", rows.astype(np.float32))
    np.save(tmp_path / "queries.npy", rows[asked].astype(np.float32) + 0.01)
    firsts = asked // 32 * 32
    answers = [(query, row + more) for query, row in enumerate(firsts) for more in range(2)]
    np.save(tmp_path / "relevance.npy", np.array(answers))
    return tmp_path


def test_queries_held_out_are_measured_before_and_after(files):
    named = ("--vectors", files / "base.npy", "--queries", files / "queries.npy", "--kind", "pq")
    few = ("--bytes", "1,2", "--splits", 2, "--json", files / "record.json")
    found = invoke(*named, *few, "--relevance", files / "relevance.npy")
    assert found.exit_code == 0, found.output
    record = json.loads((files / "record.json").read_text())
    assert record["data"]["rows"] == 512 and record["settings"]["splits"] == 2
    assert [row[:2] for row in record["tables"]["relevance"]["rows"]] == [["pq", "1"], ["pq", "2"]]
    for result, row in zip(record["results"], record["tables"]["relevance"]["rows"], strict=True):
        splits = result["splits"]
        assert len(splits) == 2 and row[-1] == "2 of 2" and all(split["kept"] for split in splits)
        for figure, shown in (("ndcg", row[2:4]), ("recall", row[6:8])):
            before, after = (
                np.mean([split[f"{figure}_{when}"] for split in splits]) for when in ("before", "after")
            )
            assert before < after and shown == [f"{before:.3f}", f"{after:.3f}"]
    refused = invoke(*named, "--splits", 0)
    assert refused.exit_code == 1 and "splits" in refused.stderr


def test_answers_by_position_need_rows_in_order(files):
    named = (str(files / "docs.lance"), str(files / "queries.npy"), str(files / "relevance.npy"))
    with pytest.raises(InvalidInputError, match="random order"):
        read_relevance_data(*named, "vector", metric="cosine", seed=0)
