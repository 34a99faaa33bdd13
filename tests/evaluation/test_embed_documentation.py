"""The maker of a second data set: which texts it takes from which files, and what it writes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "benchmarks" / "embed_documentation.py"

PAGE = """# Keeping vectors small

Every vector is kept as a few bytes, and compared with queries by tables that are made once per query.

Restoring a backup
==================

A backup is a folder of files. Copy it to where the database is, and open the table as before.

| bytes | recall | 0.71 | 0.82 | 0.93 | 1,234 | 5,678 | 9,012 | 3,456 | 7,890 |
"""

MODULE = '''"""Search for the rows nearest to a query.

The shortlist is decoded, and then ordered by exact distances to what the codes stand for.

    >>> table.search([0.1, 0.2, 0.3, 0.4]).limit(10).to_list()[0]["_distance"] == 0.125
"""

raise RuntimeError("This file is parsed, and never run.")


def scan(codes):
    """Add up what the tables say about each byte, eight codes at a time where processors can."""
'''

PASSAGES = {
    "Every vector is kept as a few bytes, and compared with queries by tables that are made once per query.",
    "A backup is a folder of files. Copy it to where the database is, and open the table as before.",
    "The shortlist is decoded, and then ordered by exact distances to what the codes stand for.",
    "Add up what the tables say about each byte, eight codes at a time where processors can.",
}

HEADINGS = {"Keeping vectors small", "Restoring a backup", "Search for the rows nearest to a query."}


@pytest.fixture
def folder(tmp_path) -> Path:
    texts = tmp_path / "texts"
    (texts / "inner").mkdir(parents=True)
    (texts / "page.md").write_text(PAGE)
    (texts / "inner" / "module.py").write_text(MODULE)
    (texts / "broken.py").write_text('def template({{ name }}):\n    """A template, no Python."""\n')
    (texts / "data.csv").write_text(PAGE)
    return texts


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("embed_documentation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_passages_and_headings(script, folder) -> None:
    passages, headings = script.collect([folder], 100)
    assert set(passages) == PASSAGES and len(passages) == len(PASSAGES)
    assert set(headings) == HEADINGS


def test_collecting_stops_at_the_number_wanted(script, folder) -> None:
    passages, headings = script.collect([folder], 1)
    assert len(passages) == 1 and set(passages) < PASSAGES
    assert set(headings) < HEADINGS  # of the file that was read


def test_a_text_is_a_passage_or_a_heading(script, folder) -> None:
    sentence = min(PASSAGES, key=len)
    (folder / "again.md").write_text(f"# {sentence}\n\n{sentence}\n\n{sentence}\n")
    passages, headings = script.collect([folder, folder], 100)
    assert set(passages) == PASSAGES and len(passages) == len(PASSAGES)
    assert set(headings) == HEADINGS


@pytest.mark.skipif(importlib.util.find_spec("wordllama") is None, reason="needs wordllama")
def test_files_hold_vectors_of_unit_length(script, folder, tmp_path) -> None:
    script.main(texts=[folder], passages=100, queries=2, seed=0, out=tmp_path / "made")
    base, queries = (np.load(tmp_path / "made" / f"{name}.npy") for name in ("base", "queries"))
    assert base.shape == (4, 256) and queries.shape == (2, 256) and base.dtype == queries.dtype == np.float32
    for rows in (base, queries):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    # Texts in random order; each as the model embeds it.
    passages, _ = script.collect([folder], 100)
    similarities = base @ script.embed(passages).T
    assert sorted(similarities.argmax(axis=0)) == [0, 1, 2, 3] and similarities.max(axis=0).min() > 0.9999


def test_nothing_found(script, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="Got 0 passages and 0 headings"):
        script.main(texts=[tmp_path / "empty"], passages=10, queries=1, seed=0, out=tmp_path)
