import dataclasses
import io

import lancedb
import numpy as np
import pytest
from rich.console import Console

import rqmoe_store as rqs
from rqmoe_store.demo.run import QUESTIONS, DemoSettings, print_result, run
from rqmoe_store.demo.texts import collect, embed_cached

WORDS = ["tree", "leaf", "file", "archive", "thread", "matrix", "socket", "clock", "queue", "color", "event"]


def word_embedding(texts):
    """A real embedding without a model: sums of one fixed random vector per word."""
    vectors = np.zeros((len(texts), 24), np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row] += np.random.default_rng(sum(word.encode())).normal(size=24)
    return vectors


@pytest.fixture
def source(tmp_path):
    """A folder of Python source with 420 docstrings."""
    random = np.random.default_rng(0)
    for part in range(7):
        functions = [
            f'def function_{number}():\n    """Return {" ".join(random.choice(WORDS, 5))} {part} {number}, '
            'which is long enough."""\n'
            for number in range(60)
        ]
        (tmp_path / f"part{part}.py").write_text("\n".join(functions))
    return tmp_path


@pytest.fixture
def settings(tmp_path):
    return DemoSettings(directory=tmp_path / "demo", cache_dir=tmp_path / "cache", minutes=0.02)


def run_small(settings, source, make_embedder=lambda: word_embedding):
    output = io.StringIO()
    console = Console(file=output, width=200)
    return run(settings, console, roots=[source], make_embedder=make_embedder), output.getvalue()


def test_whole_demo(settings, source):
    result, output = run_small(settings, source)
    assert (result.rows, result.dim, result.queries) == (408, 24, 12)
    assert result.bytes_per_vector_before == pytest.approx(24 * 4, rel=0.1)
    assert result.bytes_per_vector_after < result.bytes_per_vector_before
    assert 0.3 < result.recall <= 1
    assert result.validation_mse <= result.rq_validation_mse
    for text in (*QUESTIONS, "recall@10", "408 of dimension 24", "time: train"):
        assert text in output

    # The raw vectors are gone, and a new process finds the rest.
    db = lancedb.connect(settings.directory)
    assert not (settings.directory / "docs.lance").exists()
    store = rqs.open_table(db, "docs_compressed")
    assert store.schema.names == ["id", "package", "name", "text"]
    assert result.codec_bytes < result.disk_bytes_after
    assert result.break_even_rows == store.stats().break_even_rows
    assert f"from about {result.break_even_rows:,} rows" in output
    assert result.disk_bytes_after > result.disk_bytes_before  # 408 rows of 96 bytes do not pay for a codec
    assert "With 408 rows the codec is larger than the space that codes save." in output

    # A second run would find all its embeddings in the cache.
    texts = [document.text for document in collect([source], limit=settings.limit)]
    vectors, cached = embed_cached([*texts, *QUESTIONS], settings.cache_dir, lambda: word_embedding)
    assert cached
    assert len(vectors) == 420 + len(QUESTIONS)


def test_a_database_that_shrank_is_reported_with_its_sizes(settings, source):
    result, _ = run_small(settings, source)
    smaller = dataclasses.replace(result, disk_bytes_before=15_900_000, disk_bytes_after=6_800_000)
    output = io.StringIO()
    print_result(Console(file=output, width=200), smaller, settings.directory)
    assert "The database shrank from 15.9 MB to 6.8 MB, codec included." in output.getvalue()
    assert "larger than the space" not in output.getvalue()


def test_folder_with_something_else_is_left_alone(settings, source):
    settings.directory.mkdir()
    (settings.directory / "thesis.txt").write_text("precious")
    with pytest.raises(rqs.InvalidInputError, match="not an earlier demo"):
        run_small(settings, source)
    assert (settings.directory / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("minutes", [0, -1, 3.1, float("nan")])
def test_training_time_is_bounded(minutes):
    with pytest.raises(rqs.InvalidInputError, match="minutes"):
        DemoSettings(minutes=minutes)
