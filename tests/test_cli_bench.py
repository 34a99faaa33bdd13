"""`rqmoe bench`, run in this process."""

import json
import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from failed_commands import message_of
from small_codecs import DIM, as_codec, curved, small_config, stirred
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.evaluation.peer_names import FORMS

pytestmark = pytest.mark.usefixtures("brief_timing")

ROWS = 400


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The vectors as a file and as a table, queries, and the folder of a codec of 4 bytes."""
    rows = curved(ROWS)
    np.save(tmp_path / "base.npy", rows)
    np.save(tmp_path / "queries.npy", curved(20, seed=1))
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIM)
    lancedb.connect(tmp_path / "db").create_table("docs", pa.table({"numbers": column}))
    as_codec(stirred(small_config())).save(tmp_path / "codec")
    return tmp_path


def bench(data: Path, *options: object, **named: object):
    """`bench codec` on the file, quickly; a later option replaces an earlier one."""
    arguments = [
        "bench", "codec", "--vectors", data / "base.npy", "--queries", data / "queries.npy", "--bytes", 2,
        "--codecs", "rq", "--held-out", 100, "--device", "cpu", *options,
    ]  # fmt: skip
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(data: Path, *options: object) -> str:
    """The message of a mistake, which is found before anything is trained."""
    return message_of(bench(data, *options), before="Training")


def test_prints_writes_and_draws(data, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rqmoe", "bench", "codec", "--vectors", "my base.npy"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = bench(data, "--codecs", "rq,opq", "--json", data / "out.json", "--plot", data / "out.png")
    assert run.exit_code == 0, run.output
    for heading in ("Distortion", "Recall", "Cost", "Speed", "1-R@100", "10-R@10", "Gaussian bound"):
        assert heading in run.stdout
    assert "400 vectors of dimension 12, the last 100 of them held out; 20 queries" in run.stdout
    assert "Scaling" not in run.stdout
    assert "opq, 2 bytes: MSE" in run.stderr
    written = json.loads((data / "out.json").read_text())
    assert [(result["codec"], result["code_bytes"]) for result in written["results"]] == [
        ("rq", 2),
        ("opq", 2),
    ]
    assert written["tables"].keys() >= {"distortion", "recall", "cost"}
    assert written["command"] == "rqmoe bench codec --vectors 'my base.npy'"
    assert written["data"]["rows_held_out"] == 100
    assert written["settings"]["training"]["device"] == "cpu"
    assert (data / "out.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_table_is_read_and_cut(data) -> None:
    table = data / "db" / "docs.lance"
    options = ("--vectors", table, "--vector-column", "numbers", "--rows", 380, "--scaling", "50,100")
    run = bench(data, *options, "--save", data / "saved")
    assert run.exit_code == 0, run.output
    assert "380 vectors (of 400) of dimension 12" in run.stdout
    assert "Scaling" in run.stdout
    assert (data / "saved" / "rq-2" / "config.json").is_file()
    queries = bench(data, *options[:4], "--queries", table)
    assert queries.exit_code == 0, queries.output
    assert "400 queries" in queries.stdout


@pytest.mark.slow
def test_a_folder_is_measured(data) -> None:
    run = bench(data, "--codecs", data / "codec", "--metric", "l2")
    assert run.exit_code == 0, run.output
    assert "Training rq, 4 bytes" in run.stderr
    assert run.stderr.count("Training") == 1


def test_mistakes_are_found_before_training(data) -> None:
    np.save(data / "wide.npy", np.ones((5, 13), dtype=np.float32))
    table = data / "db" / "docs.lance"
    assert "whole numbers" in fails(data, "--bytes", "many")
    assert "code_bytes=0" in fails(data, "--bytes", "8,0")
    assert "whole numbers" in fails(data, "--scaling", "1e6")
    assert "Codec 'best' is unknown" in fails(data, "--codecs", "rq,best")
    assert "dimension 13; expected 12" in fails(data, "--queries", data / "wide.npy")
    assert "Cannot read --vectors" in fails(data, "--vectors", data / "missing.npy")
    assert "Cannot read --queries" in fails(data, "--queries", data / "missing.npy")
    assert "There is no table" in fails(data, "--vectors", data / "db" / "dogs.lance")
    assert "no column 'vector'; it has ['numbers']" in fails(data, "--vectors", table)
    assert "Got 400 vectors to hold 400 out of" in fails(data, "--held-out", 400)
    assert "Got --rows 0" in fails(data, "--rows", 0)
    assert "'best' is unknown" in fails(data, "--metric", "best")
    assert "device='tpu'" in fails(data, "--device", "tpu")
    assert "Got 200 vectors to train opq on" in fails(data, "--codecs", "opq", "--held-out", 200)


def test_unwritable_outputs_are_found_before_training(data) -> None:
    assert "Cannot write --json" in fails(data, "--json", data / "nowhere" / "out.json")
    assert "Cannot write --json" in fails(data, "--json", data)
    assert "Cannot write --plot" in fails(data, "--plot", data / "nowhere" / "out.png")
    assert ".png, .svg, .pdf" in fails(data, "--plot", data / "out.txt")
    assert "which is a file" in fails(data, "--save", data / "base.npy")


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("psutil", ()),
        ("faiss", ("--codecs", "faiss-rabitq-1")),
        ("matplotlib", ("--plot", "out.png")),
    ],
)
def test_missing_libraries_are_named_before_anything_is_read(data, monkeypatch, module, options) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = fails(data, "--vectors", data / "missing.npy", *options)
    assert f"Not installed: {module}" in message
    assert 'pip install "rqmoe-store[bench]"' in message


def test_a_library_that_is_missing_is_skipped_by_name(data, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    run = bench(data, "--codecs", "rq,lsq", "--total-bytes", "2", "--json", data / "out.json")
    assert run.exit_code == 0
    line = "lsq is not installed, and was left out. To compare with it: pip install faiss-cpu"
    assert line in run.stdout.splitlines()
    written = json.loads((data / "out.json").read_text())
    assert written["skipped"] == {"lsq": "pip install faiss-cpu"}
    (best,) = written["best"]
    assert best["ours"]["codec"] == "rq" and best["best_peer"] is None
    assert written["tables"]["best-by-bytes"]["rows"][0][-1] == "yes, nobody else has so few"


def test_help_names_everything() -> None:
    output = CliRunner().invoke(app, ["bench", "codec", "--help"], env={"COLUMNS": "200"}).output
    for word in ("--scaling", "--plot", "--vector-column", "faiss-rq", "rqmoe-store[bench]"):
        assert word in output
    assert all(f"{family}-{bits[0]}" in output for family, bits in FORMS.items())
    assert "codec" in CliRunner().invoke(app, ["bench", "--help"]).output
