"""`rqmoe bench multivector`, on a small data set: what its figures are, and mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from failed_commands import message_of
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.codecs.base import load_codec
from rqmoe_store.evaluation.residual_codec import ResidualCodec

DIM = 16
DOCUMENTS, QUERIES = 120, 6


@pytest.fixture
def folder(tmp_path) -> Path:
    """Documents of vectors around a few directions of their own, and queries near some of them."""
    random = np.random.default_rng(0)

    def units(vectors: np.ndarray) -> np.ndarray:
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)

    lengths = random.integers(3, 8, size=DOCUMENTS)
    documents = [units(random.normal(size=(length, DIM))) for length in lengths]
    queries = [units(document[:3] + 0.05 * random.normal(size=(3, DIM))) for document in documents[:QUERIES]]
    np.save(tmp_path / "base.npy", np.concatenate(documents))
    np.save(tmp_path / "lengths.npy", lengths)
    np.save(tmp_path / "queries.npy", np.concatenate(queries))
    np.save(tmp_path / "query_lengths.npy", [len(query) for query in queries])
    return tmp_path


def bench(folder: Path, *options: object):
    arguments = ["bench", "multivector", folder, "--timed-queries", 1, "--encoding-bytes", 16, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.filterwarnings("ignore:Training on")
def test_systems_are_measured_on_the_same_documents(folder) -> None:
    run = bench(
        *(folder, "--kind", "pq", "--bytes", "4,8+4", "--repetitions", 2, "--hyperplanes", 2),
        *("--centroids", 32, "--shortlist", DOCUMENTS, "--json", folder / "out.json"),
    )
    assert run.exit_code == 0, run.output
    written = json.loads((folder / "out.json").read_text())
    results = {result["system"]: result for result in written["results"]}
    assert list(results) == [
        "LanceDB, raw vectors",
        "encodings alone, raw",
        "encodings alone, codes",
        "ours, 4 bytes a vector",
        "ours, 8+4 bytes a vector",
        "centroids and 2 bits (PLAID)",
    ]
    # LanceDB compares all raw vectors, and documents of near ties may change places.
    assert results["LanceDB, raw vectors"]["recall_10"] > 0.95
    vectors = np.load(folder / "lengths.npy").mean()
    assert results["LanceDB, raw vectors"]["document_bytes"] >= 4 * DIM * vectors
    few, more = results["ours, 4 bytes a vector"], results["ours, 8+4 bytes a vector"]
    assert few["recall_10"] < more["recall_10"] and few["document_bytes"] < more["document_bytes"]
    assert more["recall_10"] > results["encodings alone, codes"]["recall_10"]
    assert all(0 <= result["recall_100"] <= 1 for result in results.values())
    assert written["counts"]["documents"] == DOCUMENTS
    (table,) = written["tables"].values()
    assert len(table["rows"]) == len(results)


@pytest.mark.filterwarnings("ignore:Training on")
def test_codecs_are_kept_and_used_again(folder, tmp_path) -> None:
    kept = tmp_path / "codecs"
    kept.mkdir()

    def recalls(sizes: str) -> dict[str, float]:
        options = "--bytes", sizes, "--kind", "rq", "--centroids", 0, "--codecs", kept
        run = bench(folder, *options, "--json", folder / "out.json")
        assert run.exit_code == 0, run.output
        results = json.loads((folder / "out.json").read_text())["results"]
        return {result["system"]: result["recall_10"] for result in results}

    first = recalls("4")
    written = (kept / "rq-4").stat().st_mtime_ns
    again = recalls("4,4+4")
    assert [path.name for path in kept.iterdir()] == ["rq-4"]
    assert (kept / "rq-4").stat().st_mtime_ns == written
    one, both = "ours, 4 bytes a vector", "ours, 4+4 bytes a vector"
    assert first[one] == again[one] <= again[both]
    load_codec(kept / "rq-4").with_subject("vectors").save(kept / "rq-4")
    refused = bench(folder, "--bytes", "4", "--kind", "rq", "--codecs", kept)
    assert "rq-4 is not of residuals of row means" in message_of(refused, before="Comparing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bytes", "+16"], "Got --bytes"),
        (["--bytes", "much"], "Got --bytes"),
        (["--bytes", "0"], "code_bytes"),
        (["--documents", 50], "at least 100"),
        (["--timed-queries", 0], "timed queries"),
        (["--codecs", "nowhere"], "which is no folder"),
        (["--codecs", ".", "--kind", "pq"], "expected a kind that is trained"),
    ],
)
def test_mistakes(folder, options, message) -> None:
    assert message in message_of(bench(folder, *options), before="Comparing")


def test_a_folder_of_other_vectors(tmp_path) -> None:
    np.save(tmp_path / "base.npy", np.ones((200, DIM)))
    assert "lengths.npy" in message_of(bench(tmp_path), before="Comparing")


def test_residuals_of_more_bits_decode_nearer() -> None:
    vectors = np.random.default_rng(1).normal(size=(600, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    errors = []
    for bits in (1, 2, 4):
        codec = ResidualCodec(vectors, centroids=16, bits=bits, seed=0)
        assert codec.code_bytes == 4 + DIM * bits // 8
        errors.append(np.square(codec.round_trip(vectors) - vectors).sum(axis=1).mean())
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]
