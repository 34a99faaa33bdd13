"""Codecs by size, from a folder or trained."""

import dataclasses
import shutil

import pytest
from small_searches import CONFIG, DIM, TRAINING, clustered, small_codec

from rqmoe_store.codecs.base import load_codec
from rqmoe_store.errors import ArtifactError, InvalidInputError
from rqmoe_store.evaluation.search_benchmark import SearchSettings, load_codecs, train_codec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    small_codec().save(folder / "rq-4")
    return folder


def settings_for(folder, **changes) -> SearchSettings:
    settings = SearchSettings(codecs=folder, code_bytes=(4,), config=CONFIG, training=TRAINING)
    return dataclasses.replace(settings, **changes)


def test_codecs_are_found_by_kind_and_size(folder) -> None:
    codecs = load_codecs(settings_for(folder), DIM)
    assert list(codecs) == [4]
    assert codecs[4].fingerprint == load_codec(folder / "rq-4").fingerprint
    assert load_codecs(settings_for(None), DIM) == {}


def test_what_is_missing_or_does_not_fit(folder, tmp_path) -> None:
    with pytest.raises(InvalidInputError, match=r"no codec '.*rq-8'"):
        load_codecs(settings_for(folder, code_bytes=(4, 8)), DIM)
    with pytest.raises(InvalidInputError, match=r"no codec '.*rqmoe-4'"):
        load_codecs(settings_for(folder, config=dataclasses.replace(CONFIG, kind="rqmoe")), DIM)
    with pytest.raises(InvalidInputError, match="dimension 16"):
        load_codecs(settings_for(folder), DIM + 1)
    with pytest.raises(InvalidInputError, match="metric is 'cosine'"):
        load_codecs(settings_for(folder, config=dataclasses.replace(CONFIG, metric="cosine")), DIM)
    shutil.copytree(folder / "rq-4", tmp_path / "rq-8")
    with pytest.raises(InvalidInputError, match="has 4 code bytes; expected 8"):
        load_codecs(settings_for(tmp_path, code_bytes=(8,)), DIM)
    (tmp_path / "rq-4").mkdir()
    with pytest.raises(ArtifactError):
        load_codecs(settings_for(tmp_path), DIM)


@pytest.mark.parametrize(("partitions", "expected"), [(2, 2), (1, 0)])
def test_training(partitions, expected) -> None:
    codec, seconds = train_codec(settings_for(None), clustered(), 3, partitions)
    assert codec.config.code_bytes == 3
    assert codec.config.num_partitions == expected
    assert codec.config.codebook_size == 16
    assert seconds > 0
