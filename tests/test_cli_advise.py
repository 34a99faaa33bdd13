"""`rqmoe advise`: options, JSON, sources."""

import json
import warnings

import lancedb
import numpy as np
import pytest
from small_clusters import clustered
from small_tables import source_table
from typer.testing import CliRunner

from rqmoe_store.cli import app


def invoke(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, ["advise", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table and files, of too few rows to train a codec on, which takes long."""
    folder = tmp_path_factory.mktemp("advise")
    vectors = clustered(400, 8, seed=0)
    lancedb.connect(folder / "data").create_table("docs", source_table(vectors))
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", clustered(20, 8, seed=1))
    return folder


def test_it_prints_the_advice_on_a_table(folder):
    done = invoke(folder / "data", "docs", "--queries", folder / "queries.npy", "--target-recall", 0.9)
    assert done.exit_code == 0, done.output
    assert "docs: 400 vectors of dimension 8" in done.output
    assert "with 20 queries" in done.output
    assert "Keep the raw vectors" in done.output


def test_json_has_everything(folder):
    options = ("--limit", 5, "--metric", "dot", "--minutes", 0, "--seed", 3, "--json")
    done = invoke(folder / "vectors.npy", *options)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["rows"] == 400
    assert (document["k"], document["metric"], document["own_queries"]) == (5, "dot", False)
    assert [each["kind"] for each in document["candidates"]] == ["binary", "int8"]
    assert document["recommended"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data",), "name of a table"),
        (("data", "none"), "no table 'none'"),
        (("no-such-folder", "docs"), "no folder"),
        (("data", "docs", "--queries", "none.npy"), "Cannot read queries"),
        (("data", "docs", "--metric", "manhattan"), "manhattan"),
        (("data", "docs", "--vector-column", "text"), "'text'"),
        (("data", "docs", "--target-recall", "2"), "target_recall"),
    ],
)
def test_mistakes_are_one_message(folder, arguments, message):
    place = folder / arguments[0] if arguments[0] == "data" else arguments[0]
    done = invoke(place, *arguments[1:])
    assert done.exit_code == 1
    assert message in done.output
