"""Codecs kept inside the database."""

import concurrent.futures

import lancedb
import numpy as np
import pytest

from rqmoe_store.errors import ArtifactError
from rqmoe_store.store import registry


def stored_rows(db):
    return db.open_table(registry.REGISTRY_TABLE).search().to_list()


def test_a_codec_comes_back_the_same(db, codec, vectors):
    registry.save(db, codec)
    loaded = registry.load(lancedb.connect(db.uri), codec.fingerprint)
    assert loaded.fingerprint == codec.fingerprint
    assert loaded.config == codec.config
    codes, again = codec.encode(vectors), loaded.encode(vectors)
    np.testing.assert_array_equal(codes.codes, again.codes)
    np.testing.assert_array_equal(codes.partitions, again.partitions)
    np.testing.assert_array_equal(codec.decode(codes), loaded.decode(again))


def test_saving_twice_keeps_one_row_each(db, codec, plain_codec):
    for saved in (codec, plain_codec, codec):
        registry.save(db, saved)
    assert sorted(row["fingerprint"] for row in stored_rows(db)) == sorted(
        [codec.fingerprint, plain_codec.fingerprint]
    )
    assert registry.load(db, plain_codec.fingerprint).config == plain_codec.config


def test_concurrent_saves_into_a_new_database_lose_nothing(tmp_path, codec, plain_codec):
    for place in range(8):
        db = lancedb.connect(tmp_path / str(place))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            saves = [
                pool.submit(registry.save, lancedb.connect(db.uri), saved)
                for saved in (codec, plain_codec, codec, plain_codec)
            ]
            for save in saves:
                save.result()
        assert 2 <= len(stored_rows(db)) <= 4
        for saved in (codec, plain_codec):
            assert registry.load(db, saved.fingerprint).fingerprint == saved.fingerprint


def test_the_registry_has_the_file_format_that_lancedb_writes(db, codec):
    registry.save(db, codec)
    formats = {
        table.to_lance().data_storage_version
        for table in (db.open_table(registry.REGISTRY_TABLE), db.create_table("other", [{"id": 1}]))
    }
    assert len(formats) == 1


def test_a_missing_codec_is_named(db, codec):
    with pytest.raises(ArtifactError, match="no codec with fingerprint 'abc'"):
        registry.load(db, "abc")
    registry.save(db, codec)
    with pytest.raises(ArtifactError, match="no codec with fingerprint 'abc'"):
        registry.load(db, "abc")


def test_fingerprints_are_not_sql(db, codec):
    registry.save(db, codec)
    with pytest.raises(ArtifactError, match="no codec"):
        registry.load(db, "x' OR 'a' = 'a")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "config", "swapped"])
def test_damaged_codecs_are_refused_and_can_be_saved_again(db, codec, plain_codec, damage):
    registry.save(db, codec)
    table = db.open_table(registry.REGISTRY_TABLE)
    row = table.to_arrow().to_pylist()[0]
    weights, config = row["weights"], row["config_json"]
    if damage == "truncated":
        row["weights"] = weights[: len(weights) // 2]
    elif damage == "flipped":
        row["weights"] = weights[:-1] + bytes([weights[-1] ^ 1])
    elif damage == "config":
        row["config_json"] = config.replace('"metric": "l2"', '"metric": "dot"')
        assert row["config_json"] != config
    else:
        other = plain_codec.to_artifact()
        row["config_json"], row["weights"] = other.config_json, other.weights
    table.delete("true")
    table.add([row])
    with pytest.raises(ArtifactError, match="is damaged"):
        registry.load(db, codec.fingerprint)
    registry.save(db, codec)
    assert registry.load(db, codec.fingerprint).fingerprint == codec.fingerprint
