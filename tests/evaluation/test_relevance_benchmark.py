"""`rqmoe bench relevance`: what it reads, measures and refuses."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.relevance_benchmark import read_positives, read_relevance_data


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
    for result in record["results"]:
        assert result["ndcg_after"] > result["ndcg_before"] and result["kept"] == 2
        assert result["recall_after"] > result["recall_before"]
    refused = invoke(*named, "--splits", 0)
    assert refused.exit_code == 1 and "splits" in refused.stderr


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (np.ones((3, 2)), "whole numbers"),
        (np.ones((3, 3), int), "whole numbers"),
        (np.array([[0, 5], [1, 9]]), "not there"),
        (np.array([[0, 5], [2, 1]]), "not there"),
        (np.array([[0, -1], [1, 1]]), "not there"),
        (np.array([[0, 5]]), "without a row for query 1"),
        (np.empty((0, 2), int), "without a row for query 0"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path, pairs, message):
    np.save(tmp_path / "pairs.npy", pairs)
    with pytest.raises(InvalidInputError, match=message):
        read_positives(str(tmp_path / "pairs.npy"), 2, 9)


def test_answers_by_position_need_rows_in_order(files):
    named = (str(files / "docs.lance"), str(files / "queries.npy"), str(files / "relevance.npy"))
    with pytest.raises(InvalidInputError, match="random order"):
        read_relevance_data(*named, "vector", metric="cosine", seed=0)
