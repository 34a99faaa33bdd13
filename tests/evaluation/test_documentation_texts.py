"""Which texts and headings are taken from which files, and which belong together."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from rqmoe_store.evaluation.documentation import StaticEmbedder, collect_documentation

PAGE = """# Keeping vectors small

Every vector is kept as a few bytes, and compared with queries by tables made once per query.

## 1.2.3.4.5.6.7.8.9

What stands below a heading that is no text belongs to no heading, and is a passage all the same.

Restoring a backup
==================

A backup is a folder of files. Copy it to where the database is, and open the table as before.

| bytes | recall | 0.71 | 0.82 | 0.93 | 1,234 | 5,678 | 9,012 | 3,456 | 7,890 |
"""

MODULE = '''"""Search for the rows nearest to a query.

The shortlist is decoded, and then ordered by exact distances to what the codes stand for.

    >>> table.search([0.1, 0.2, 0.3, 0.4]).limit(10).to_list()[0]["_distance"] == 0.125

A second paragraph of the same docstring answers the same query as the first one of them does.
"""

raise RuntimeError("This file is parsed, and never run.")


def scan(codes):
    """Add up what the tables say about each byte, eight codes at a time where processors can."""
'''

ANSWERS = {
    "Keeping vectors small": {
        "Every vector is kept as a few bytes, and compared with queries by tables made once per query."
    },
    "Restoring a backup": {
        "A backup is a folder of files. Copy it to where the database is, and open the table as before."
    },
    "Search for the rows nearest to a query.": {
        "The shortlist is decoded, and then ordered by exact distances to what the codes stand for.",
        "A second paragraph of the same docstring answers the same query as the first one of them does.",
    },
}

OTHERS = {
    "What stands below a heading that is no text belongs to no heading, and is a passage all the same.",
    "Add up what the tables say about each byte, eight codes at a time where processors can.",
}

PASSAGES = OTHERS.union(*ANSWERS.values())


@pytest.fixture
def folder(tmp_path) -> Path:
    texts = tmp_path / "texts"
    (texts / "inner").mkdir(parents=True)
    (texts / "page.md").write_text(PAGE)
    (texts / "inner" / "module.py").write_text(MODULE)
    (texts / "broken.py").write_text('def template({{ name }}):\n    """A template, no Python."""\n')
    (texts / "data.csv").write_text(PAGE)
    return texts


def answers_in(found) -> dict[str, set[str]]:
    return {
        heading: {found.passages[row] for row in rows}
        for heading, rows in zip(found.headings, found.relevant, strict=True)
    }


def test_passages_and_the_headings_that_ask_for_them(folder) -> None:
    found = collect_documentation([folder], 100)
    assert set(found.passages) == PASSAGES and len(found.passages) == len(PASSAGES)
    assert answers_in(found) == ANSWERS
    packages = dict(zip(found.passages, found.packages, strict=True))
    assert packages[min(ANSWERS["Restoring a backup"])] == "page"
    assert packages[min(ANSWERS["Search for the rows nearest to a query."])] == "inner"


def test_collecting_stops_at_the_number_wanted(folder) -> None:
    found = collect_documentation([folder], 1)
    assert len(found.passages) == 1 and set(found.passages) < PASSAGES
    assert all(rows == (0,) for rows in found.relevant)


def test_a_text_is_a_passage_or_a_heading(folder) -> None:
    sentence = min(ANSWERS["Restoring a backup"])
    (folder / "again.md").write_text(f"# {sentence}\n\n{sentence}\n\n{sentence}\n")
    found = collect_documentation([folder, folder], 100)
    assert set(found.passages) == PASSAGES and answers_in(found) == ANSWERS


def test_a_heading_of_different_sections_asks_for_nothing(folder) -> None:
    passage = "Another section of this name is about something else, and nobody knows which one is meant."
    (folder / "again.md").write_text(f"# Restoring a backup\n\n{passage}\n")
    found = collect_documentation([folder], 100)
    assert set(found.passages) == PASSAGES | {passage}
    assert set(found.headings) == set(ANSWERS) - {"Restoring a backup"}


@pytest.mark.skipif(importlib.util.find_spec("wordllama") is None, reason="needs wordllama")
def test_texts_of_like_words_have_like_vectors() -> None:
    embed = StaticEmbedder()
    vectors_ND = embed(["open a table", "opening the tables", "the weather in spring"])
    assert vectors_ND.shape == (3, 256) and vectors_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, rtol=1e-5)
    assert vectors_ND[0] @ vectors_ND[1] > vectors_ND[0] @ vectors_ND[2] + 0.2


def test_sections_of_passages_and_pages_with_several(tmp_path) -> None:
    def passage(name: str) -> str:
        return f"This is the passage that is called {name}, which stands in one section of one page only."

    def page(title: str, *names: str) -> str:
        return f"# {title}\n\n" + "\n".join(f"## The part of {name}\n\n{passage(name)}\n" for name in names)

    (tmp_path / "one.md").write_text(page("The first of the pages", "Ann", "Ben", "Cy", "Ann"))
    (tmp_path / "two.md").write_text(page("A page of two parts only", "Dan", "Eve"))
    for name in ("three.md", "four.md"):
        (tmp_path / name).write_text(
            page("A title that two pages have", *(f"{part} {name}" for part in "xyz"))
        )
    found = collect_documentation([tmp_path], 100)
    assert [page.title for page in found.pages] == ["The first of the pages"]
    numbers = dict(zip(found.passages, found.sections, strict=True))
    assert found.pages[0].sections == tuple(sorted(numbers[passage(name)] for name in ("Ann", "Ben", "Cy")))
    assert len(set(numbers.values())) == len(numbers) == 11
