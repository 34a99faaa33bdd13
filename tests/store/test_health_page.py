"""The report on the health of a table: all figures of what it shows, and commands that can be typed."""

import dataclasses
import re
import shlex
from pathlib import Path

import lancedb
import numpy as np
import pytest
from small_pages import ParsedPage, require_sound
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.pages.page import page_html
from rqmoe_store.store.health import measure_partitions, recent_errors
from rqmoe_store.store.health_page import MeasuredTable, health_page, measure_table
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table

NAME = "docs <script>'s"
DIM, ROWS = 8, 1000
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=4, beam=1)
TRAINING = TrainConfig(epochs=0, progress=False)


def rows_of(rows: int, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    return [{"vector": vector} for vector in scale * np.random.default_rng(rows).normal(size=(rows, DIM))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CompressedTable:
    """Rows of three kinds: like those of training, far from them, and not encoded yet."""
    database = lancedb.connect(tmp_path_factory.mktemp("database"))
    made = create_table(database, "docs", rows_of(ROWS), config=CONFIG, keep_vectors="float32")
    made.train(TRAINING, progress=False)
    made.add(rows_of(300))
    with pytest.warns(UserWarning, match="does not fit"):
        made.add(rows_of(400, 3.0))
    made.add(rows_of(20), encode=False)
    return made


def measured_of(store: CompressedTable) -> MeasuredTable:
    uri = store.handle.newest().database.uri
    return store.handle.snapshots.read(lambda each: measure_table(each.table, each.codecs, uri))


@pytest.fixture(scope="module")
def measured(store: CompressedTable) -> MeasuredTable:
    return measured_of(store)


def test_partitions_are_those_of_the_rows_and_errors_those_of_decoding(store: CompressedTable) -> None:
    snapshot = store.handle.snapshots.current()
    partitions = measure_partitions(snapshot.table, snapshot.codecs)
    coded = store.table.search().where("vector_code IS NOT NULL").limit(None).to_arrow()
    places = coded["vector_partition"].to_numpy()
    assert partitions.rows_P.tolist() == np.bincount(places, minlength=4).tolist()
    assert partitions.trained_P.sum() == len(store.codec.calibration)
    codes, valid = snapshot.codecs.read(coded)
    raw = np.stack(coded["vector"].to_numpy())
    errors = np.square(raw - store.codec.decode(codes)).sum(axis=1)
    assert valid.all() and partitions.against == "raw"
    assert partitions.sampled_P.tolist() == partitions.rows_P.tolist()
    expected = [errors[places == place].mean() for place in range(4)]
    np.testing.assert_allclose(partitions.mse_P, expected, rtol=1e-4)


def test_commits_are_told_apart(store: CompressedTable) -> None:
    snapshot = store.handle.snapshots.current()
    commits = recent_errors(snapshot.dataset, snapshot.codecs)
    assert [commit.rows for commit in commits] == [300, 400]
    first, second = (commit.mse or 0 for commit in commits)
    assert second > 2 * first
    assert [commit.version for commit in commits] == [snapshot.version - 2, snapshot.version - 1]


@pytest.fixture(scope="module")
def html(measured: MeasuredTable) -> str:
    """The page of the same table under a name that LanceDB would not allow."""
    return page_html(health_page(dataclasses.replace(measured, name=NAME)))


def test_all_figures_are_on_the_page(measured: MeasuredTable, html: str) -> None:
    page = ParsedPage(html)
    require_sound(page)
    report, stats, partitions = measured.report, measured.stats, measured.partitions
    assert partitions is not None and report.error_ratio is not None
    wanted = [report.rows, report.raw_rows, report.older_rows, stats.rows]
    wanted += [*partitions.rows_P, *partitions.sampled_P, *(commit.version for commit in measured.commits)]
    errors = [report.trained_mse, report.added_mse, *partitions.mse_P]
    errors += [commit.mse for commit in measured.commits]
    words = re.split(r"[\s;()]+", page.words)
    assert {f"{number:,}" for number in wanted} <= {word.strip(",.:") for word in words}
    assert {f"{error:.4g}" for error in errors} <= {word.rstrip(",.") for word in words}
    assert f"{report.balance:.3f}" in words and f"{stats.bytes_per_vector:.2f}" in words
    assert "The codec does not fit the rows added any more: retrain()." in page.words
    assert "20 rows have no code yet" in page.words
    for title in (
        "Error of added rows by commit",
        "Rows by partition",
        "Error by partition",
        "Size of the table",
    ):
        assert title in page.words


def test_commands_of_the_page_are_quoted(measured: MeasuredTable, html: str) -> None:
    assert NAME in ParsedPage(html).words and NAME not in html
    commands = [ParsedPage(each).text for each in re.findall(r"<code>(.*?)</code>", html, re.DOTALL)]
    assert "store.retrain(rqs.TrainConfig(max_minutes=5))" in commands[0]
    compile(commands[0], "page", "exec")
    words = [shlex.split(command) for command in commands[1:]]
    assert [each[:4] for each in words] == [
        ["rqmoe", command, measured.database, NAME] for command in ("optimize", "tune", "verify", "health")
    ]


def test_a_table_without_a_codec_has_a_page(tmp_path: Path) -> None:
    store = create_table(lancedb.connect(tmp_path), "docs", rows_of(50), config=CONFIG)
    page = ParsedPage(page_html(health_page(measured_of(store))))
    require_sound(page)
    assert "No codec yet" in page.words and "rqmoe optimize" in page.words and "--train-from 50" in page.words
    assert "Drift" not in page.words


@pytest.mark.parametrize("refine_bytes", [0, 4])
def test_tables_without_raw_vectors(tmp_path: Path, refine_bytes: int) -> None:
    config = dataclasses.replace(CONFIG, refine_bytes=refine_bytes, num_partitions=0)
    store = create_table(lancedb.connect(tmp_path), "docs", rows_of(ROWS), config=config)
    store.train(TRAINING, progress=False)
    page = ParsedPage(page_html(health_page(measured_of(store))))
    require_sound(page)
    assert "every search reads all codes" in page.words
    assert ("against refined vectors" in page.words) == bool(refine_bytes)
    assert ("cannot be measured" in page.words) == (not refine_bytes)


def test_the_command_writes_the_page_and_exits_as_without(store: CompressedTable, tmp_path: Path) -> None:
    uri, path = store.handle.newest().database.uri, tmp_path / "health.html"
    run = CliRunner().invoke(app, ["health", uri, "docs", "--report", str(path)])
    assert run.exit_code == 1 and "retrain()" in run.stdout
    require_sound(ParsedPage(path.read_text()))
    assert list(tmp_path.iterdir()) == [path]
    missing = CliRunner().invoke(
        app, ["health", uri, "docs", "--report", str(tmp_path / "no" / "health.html")]
    )
    assert missing.exit_code == 1 and missing.stdout == "" and "Cannot write --report" in missing.stderr


def test_the_report_of_the_page_is_returned(tmp_path: Path) -> None:
    store = create_table(lancedb.connect(tmp_path / "database"), "docs", rows_of(50), config=CONFIG)
    assert store.save_health_report(tmp_path / "health.html") == store.health()
    with pytest.raises(InvalidInputError, match="Cannot write the report"):
        store.save_health_report(tmp_path)
