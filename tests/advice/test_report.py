"""The report of an advice has all of its figures, its recommendation, and what to type."""

import json
import re
from pathlib import Path

import lancedb
import numpy as np
import pytest
from failed_commands import message_of
from small_advice import advice, candidate
from small_clusters import clustered
from small_pages import ParsedPage, require_sound
from small_tables import tiny_codec
from typer.testing import CliRunner

import rqmoe_store as rqs
from rqmoe_store.advice.candidates import Workbench
from rqmoe_store.advice.report import advice_page, config_code
from rqmoe_store.advice.result import duration
from rqmoe_store.advice.sample import SampleSizes, draw_sample
from rqmoe_store.advice.vectors import open_vectors
from rqmoe_store.cli import app
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.pages.page import page_html
from rqmoe_store.store.statistics import readable
from rqmoe_store.tables import create_table

HOSTILE = "<script>alert(1)</script>&amp;"


@pytest.fixture(scope="module")
def html() -> str:
    return page_html(advice_page(advice(source=HOSTILE, notes=(HOSTILE,))))


def test_the_page_is_sound_and_shows_names_as_they_are(html: str) -> None:
    page = ParsedPage(html)
    require_sound(page)
    assert HOSTILE not in html and page.words.count(HOSTILE) == 3


def test_all_figures_are_on_the_page(html: str) -> None:
    words, given = ParsedPage(html).words, advice()
    for each in given.candidates:
        wanted = [f"{each.recall:.3f} ({each.recall_low:.3f} to {each.recall_high:.3f})", each.name]
        wanted += [f"{each.total_bytes:,}", f"{each.relative_error:.3f}", readable(each.table_bytes)]
        wanted += [f"{each.sample_recall:.3f}", f"{each.break_even_rows:,} rows"]
        wanted += [duration(each.encode_seconds), duration(each.training_seconds)]
        if each.default_search_recall is not None and each.query_seconds is not None:
            wanted += [f"{each.default_search_recall:.3f}", f"{1e3 * each.query_seconds:.2f} ms"]
        assert [text for text in wanted if text not in words] == []
    for text in (given.sentence, given.method, "100,000 of dimension 384", "500, given", "20,000 encoded"):
        assert text in words
    worst = max(given.candidates[6].partition_errors, key=lambda each: each.relative_error)
    assert f"{worst.relative_error:.4g} in the worst partition" in words
    assert all(f"{commit.mse:.4g}" in words for commit in given.commits)
    assert "7 rows have no code yet" in words


def test_plots_have_intervals_and_mark_the_recommendation(html: str) -> None:
    plot = html[html.index('<h3 id="recall-title">') :]
    plot = plot[: plot.index("</figure>")]
    assert "recommended: rqmoe 16 + 64" in plot and "wanted: 0.95" in plot
    assert "is reached by rqmoe 16 + 64, rqmoe 16 + 80, int8; rqmoe 16 + 64 is recommended." in plot
    # Intervals of four kinds, in the plot and its legend, for a narrow and a wide page.
    assert plot.count("LineCollection") == 4 * 2 * 2
    assert re.search(r'class="chosen">\s*<th[^>]*>rqmoe 16 \+ 64</th>', html)


def test_commands_are_those_of_the_advice(html: str) -> None:
    *commands, python = (ParsedPage(each).text for each in re.findall(r"<code>(.*?)</code>", html, re.DOTALL))
    assert tuple(commands) == advice().commands
    assert "max_minutes=1)" in python
    compile(python, "page", "exec")


@pytest.mark.parametrize(
    "config",
    [
        CodecConfig(),
        CodecConfig(kind="rq", metric="cosine", code_bytes=32, refine_bytes=48, refine_kind="saq"),
        CodecConfig(kind="qinco", num_partitions=0, beam=1),
    ],
)
def test_code_makes_the_configuration(config: CodecConfig) -> None:
    assert eval(config_code(config), {"rqs": rqs}) == config


def test_an_advice_against_compressing(tmp_path: Path) -> None:
    scalars = advice().candidates[-2:]
    given = advice(candidates=scalars, recommended=None, commands=(), health=None, commits=(), complete=False)
    given.save_report(tmp_path / "advice.html")
    page = ParsedPage((tmp_path / "advice.html").read_text())
    require_sound(page)
    for text in ("nothing to type", "interrupted", "reached by int8."):
        assert text in page.words
    assert "Drift" not in page.words and "Error by partition" not in page.words
    assert 'class="verdict act"' in (tmp_path / "advice.html").read_text()


def test_nothing_measured_and_nothing_enough() -> None:
    nothing = ParsedPage(page_html(advice_page(advice(candidates=(), recommended=None, health=None))))
    require_sound(nothing)
    assert "No candidate was measured." in nothing.words
    little = advice(candidates=(candidate("rq", 8, 0, 0.5),), recommended=None, health=None)
    page = ParsedPage(page_html(advice_page(little)))
    require_sound(page)
    assert "None reaches the wanted 0.95." in page.words


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="Cannot write the report"):
        advice().save_report(tmp_path / "missing" / "advice.html")
    with pytest.raises(InvalidInputError, match="path"):
        advice().save_report(7)  # type: ignore[arg-type]


def test_the_command_writes_what_was_measured_of_a_compressed_table(tmp_path: Path) -> None:
    """Of too few rows to train a candidate on, which would take long."""
    vectors, path = clustered(600, 16, seed=1), tmp_path / "advice.html"
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=4, beam=1)
    store = create_table(lancedb.connect(tmp_path / "db"), "docs", rows_of(vectors[:300]), config=config)
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    store.add(rows_of(vectors[300:]))
    arguments = ["advise", str(tmp_path / "db"), "docs", "--minutes", "0", "--json", "--report", str(path)]
    with pytest.warns(UserWarning, match="keeps no raw vectors"):
        run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    given, page = json.loads(run.stdout), ParsedPage(path.read_text())
    require_sound(page)
    assert given["health"]["rows"] == 300 and [each["rows"] for each in given["commits"]] == [300]
    assert "Error of added rows by commit" in page.words
    assert f"{given['health']['added_mse']:.4g}" in page.words
    for each in given["candidates"]:
        assert f"{each['recall']:.3f} ({each['recall_low']:.3f} to {each['recall_high']:.3f})" in page.words


def test_errors_by_partition_add_up_to_that_of_all_rows() -> None:
    vectors = clustered(800, 16, seed=1)
    sizes = SampleSizes(queries=20, training=400, encoded=500, k=5, seed=0)
    sample = draw_sample(open_vectors(vectors, "vector"), None, "l2", sizes, lambda rows: None)
    bench, codec = Workbench.of(sample, 0), tiny_codec(vectors, "l2", 6)
    codes = codec.encode(sample.encoded_ED)
    decoded = codec.decode(codes)
    errors = bench.partition_errors(codec, codes, decoded)
    rows = [error.rows for error in errors]
    assert sum(rows) == sample.random_rows < len(codes) and len(rows) > 1
    mean = np.average([error.relative_error for error in errors], weights=rows)
    assert mean == pytest.approx(bench.quality(decoded)["relative_error"], rel=1e-5)


def rows_of(vectors: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"vector": vector} for vector in vectors]


def test_a_report_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    arguments = ["advise", str(tmp_path), "docs", "--report", str(tmp_path / "missing" / "advice.html")]
    assert "Cannot write --report" in message_of(CliRunner().invoke(app, arguments), before="Reading")


def test_what_is_added_for_the_report_is_json_too() -> None:
    values = json.loads(json.dumps(advice().to_dict()))
    assert values["health"]["rows"] == 900 and values["commits"][2]["version"] == 9
    assert values["candidates"][0]["partition_errors"][0]["partition"] == 1
