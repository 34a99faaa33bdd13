"""The commands, run in this process; `rqmoe --help` also in one of its own."""

import json
import subprocess
import sys

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import rqmoe_store as rqs
from rqmoe_store.cli import app

ROWS, DIM = 300, 8
RERANKS = ("refined", "decoded", "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A database folder with a raw table `docs`, the compressed `small`, and the codec's folder."""
    folder = tmp_path_factory.mktemp("cli")
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    db = lancedb.connect(folder / "db")
    table = {
        "id": pa.array(range(ROWS)),
        "lang": ["en", "fr"] * (ROWS // 2),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM),
    }
    docs = db.create_table("docs", pa.table(table))
    codec = rqs.train(
        docs,
        config=rqs.CodecConfig(code_bytes=8, codebook_size=32),
        training=rqs.TrainConfig(epochs=1, progress=False),
    )
    codec.save(folder / "codec")
    rqs.compress(docs, codec, into="small", progress=False)
    np.save(folder / "query.npy", vectors[7])
    np.save(folder / "queries.npy", vectors[:2])
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(*arguments):
    """The message of a command that fails as a user's mistake should."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


def test_help_teaches():
    output = invoke("--help").output
    for command in ("train", "compress", "search", "tune", "stats", "demo"):
        assert command in output
        assert invoke(command, "--help").exit_code == 0
    assert "rqmoe compress" in output


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from rqmoe_store.cli import app; app(['--help'], standalone_mode=False); "
        "print(sorted({'torch', 'lancedb', 'pyarrow', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_version():
    assert invoke("--version").output.strip() == f"rqmoe-store {rqs.__version__}"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "rqmoe_store", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: rqmoe " in done.stdout


def test_train_compress_search(data, tmp_path):
    codec = tmp_path / "codec"
    trained = invoke("train", data / "db", "docs", "--out", codec, "--bytes", 4, "--kind", "rq")
    assert trained.exit_code == 0, trained.output
    assert "encodes in float32" in trained.output
    assert "4 bytes per vector" in trained.output
    assert rqs.load_codec(codec).config.code_bytes == 4
    compressed = invoke("compress", data / "db", "docs", "--codec", codec, "--into", tmp_path.name)
    assert compressed.exit_code == 0, compressed.output
    store = rqs.open_table(lancedb.connect(data / "db"), tmp_path.name)
    assert (store.count_rows(), store.codec.config.kind) == (ROWS, "rq")


def test_kept_vectors_order_what_is_found(data):
    kept = ("--codec", data / "codec", "--into", "small_kept", "--keep-vectors", "float16", "--key", "id")
    compressed = invoke("compress", data / "db", "docs", *kept)
    assert compressed.exit_code == 0, compressed.output
    store = rqs.open_table(lancedb.connect(data / "db"), "small_kept")
    assert (store.kept.keep, store.key) == ("float16", "id")
    search = (
        "search",
        data / "db",
        "small_kept",
        "--query",
        data / "query.npy",
        "--json",
        "--refine-factor",
        4,
    )
    rows = [json.loads(line) for line in invoke(*search).stdout.splitlines()]
    assert (rows[0]["id"], len(rows)) == (7, 10)
    assert rows[0]["_distance"] < 1e-5  # to the row's own vector, up to rounding
    assert set(rows[0]) == {"id", "lang", "_distance"}
    assert "vector" in json.loads(invoke(*search, "--select", "vector").stdout.splitlines()[0])
    assert "keep_vectors" in fails("search", data / "db", "small", *search[3:])
    assert "'float8'" in fails("compress", data / "db", "docs", *kept[:3], "more", "--keep-vectors", "float8")


def test_refine_codes_order_what_is_found(data, tmp_path):
    codec = tmp_path / "codec"
    options = ("--kind", "saq", "--bytes", 2, "--refine-bytes", 6, "--refine-kind", "turboquant")
    trained = invoke("train", data / "db", "docs", "--out", codec, *options)
    assert trained.exit_code == 0, trained.output
    assert "8 bytes per vector" in trained.output and "with refine codes" in trained.output
    assert "plain RQ" not in trained.output and "encodes in" not in trained.output
    config = rqs.load_codec(codec).config
    assert (config.refine_bytes, config.refine_kind) == (6, "turboquant")
    compressed = invoke("compress", data / "db", "docs", "--codec", codec, "--into", "small_refined")
    assert "read from memory" in compressed.output
    search = ("search", data / "db", "small_refined", "--query", data / "query.npy", "--json", "-n", 3)
    distances = {
        kind: [json.loads(line)["_distance"] for line in invoke(*search, *options).stdout.splitlines()]
        for kind, options in {"default": (), **{kind: ("--rerank", kind) for kind in RERANKS}}.items()
    }
    assert distances["default"] == distances["refined"] != distances["decoded"]
    assert distances["decoded"] == pytest.approx(distances["none"], rel=1e-3, abs=1e-3)
    assert distances["refined"][0] < distances["decoded"][0]
    assert "'raw'" in fails(*search, "--rerank", "raw")


@pytest.mark.parametrize("form", ["npy", "json", "inline"])
def test_search_finds_the_row_itself(data, tmp_path, form):
    vector = np.load(data / "query.npy").tolist()
    (tmp_path / "query.json").write_text(json.dumps(vector))
    query = {"npy": data / "query.npy", "json": tmp_path / "query.json", "inline": json.dumps(vector)}[form]
    result = invoke(
        "search", data / "db", "small", "--query", query, "--json", "--limit", 3, "--select", "id, lang"
    )
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 3
    assert rows[0]["id"] == 7
    assert set(rows[0]) == {"id", "lang", "_distance"}


def test_search_passes_options_on(data):
    arguments = ("search", data / "db", "small", "--query", data / "query.npy", "--nprobes", 1, "--json")
    rows = [json.loads(line) for line in invoke(*arguments, "--where", "lang = 'en'").stdout.splitlines()]
    assert len(rows) == 10
    assert {row["lang"] for row in rows} == {"en"}


def test_search_prints_a_table_and_says_when_there_is_nothing(data):
    arguments = ("search", data / "db", "small", "--query", data / "queries.npy", "-n", 2)
    assert "query_index" in invoke(*arguments).stdout
    empty = invoke(*arguments, "--where", "id < 0")
    assert empty.exit_code == 0
    assert "No rows" in empty.stderr


def test_tune(data):
    tuned = invoke("tune", data / "db", "small", "--queries", data / "queries.npy", "--target-recall", 0.9)
    assert tuned.exit_code == 0, tuned.output
    assert "of the 10 nearest" in tuned.output and "<- chosen" in tuned.output
    again = invoke("tune", data / "db", "small", "--limit", 3)
    assert "queries made from rows of the table" in again.output
    assert "target_recall=2" in fails("tune", data / "db", "small", "--target-recall", 2)
    assert "--queries" in fails("tune", data / "db", "small", "--queries", data / "missing.npy")


def test_stats(data):
    result = invoke("stats", data / "db", "small")
    assert result.exit_code == 0
    assert "300" in result.output
    assert "per vector" in result.output


def test_mistakes_get_one_message(data, tmp_path):
    db, query = data / "db", data / "query.npy"
    assert "no folder" in fails("stats", tmp_path / "nowhere", "small")
    assert not (tmp_path / "nowhere").exists()
    assert "docs, small" in fails("train", db, "dogs", "--out", tmp_path / "codec").replace(
        "_rqmoe_codecs, ", ""
    )
    assert "'best' is unknown" in fails("train", db, "docs", "--out", tmp_path / "codec", "--metric", "best")
    assert "code_bytes=0" in fails("train", db, "docs", "--out", tmp_path / "codec", "--bytes", 0)
    assert not (tmp_path / "codec").exists()
    fails("compress", db, "docs", "--codec", tmp_path / "nowhere", "--into", "other")
    assert "small" in fails("compress", db, "docs", "--codec", data / "codec", "--into", "small")
    fails("search", db, "docs", "--query", query)
    fails("search", db, "small", "--query", query, "--limit", 0)
    fails("search", db, "small", "--query", query, "--where", "lang = = 1")
    fails("search", db, "small", "--query", "[1, 2]")
    assert "Cannot read a vector" in fails("search", db, "small", "--query", "one, two")
    assert "Cannot read a vector" in fails("search", db, "small", "--query", tmp_path / "missing.npy")
    assert "at most 3" in fails("demo", "--directory", tmp_path / "demo", "--minutes", 5)


def test_mistakes_may_contain_what_looks_like_markup(data):
    assert "[bold]x[/oops]" in fails("search", data / "db", "small", "--query", "[bold]x[/oops]")


def test_other_failures_keep_their_traceback(data, monkeypatch):
    def broken(self):
        raise RuntimeError("a bug")

    monkeypatch.setattr(rqs.CompressedTable, "stats", broken)
    assert isinstance(invoke("stats", data / "db", "small").exception, RuntimeError)


def test_train_replaces_no_codec_unless_told_to(data, tmp_path):
    out = tmp_path / "codec"
    arguments = ["train", data / "db", "docs", "--out", out, "--bytes", 4, "--kind", "rq"]
    assert invoke(*arguments).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused = invoke(*arguments)
    assert refused.exit_code == 1 and "--overwrite" in refused.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert invoke(*arguments, "--seed", 1, "--overwrite").exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} != before
    (tmp_path / "file").write_text("x")
    assert "is a file" in invoke(*arguments[:4], tmp_path / "file", *arguments[5:]).stderr


def test_tune_codec(data):
    np.save(
        data / "questions.npy", np.load(data / "queries.npy")[np.arange(120) % 2] + np.arange(120)[:, None]
    )
    (data / "answers.json").write_text(json.dumps([[0]] * 120))
    arguments = ("tune-codec", data / "db", "small", "--queries", data / "questions.npy")
    found = invoke(*arguments, "--positives", data / "answers.json", "--on", "id", "--held-out", 0.4)
    assert "nDCG@10" in found.output and "48 queries held out from 72" in found.output
    assert "keeps no vectors" in fails(*arguments)
    assert "--positives" in fails(*arguments, "--positives", data / "missing.json")
    train = ("train", data / "db", "docs", "--out", data / "tuned", "--bytes", 4, "--kind", "pq")
    train = (*train, "--queries", data / "questions.npy")
    found = invoke(*train, "--positives", data / "answers.json", "--on", "id")
    assert "It is tuned for the queries" in found.output or "It is not tuned" in found.output
    refused = invoke(*train, "--overwrite", "--positives", data / "answers.json")
    assert refused.exit_code == 1 and "on=None" in refused.stderr
