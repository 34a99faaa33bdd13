"""Paths and URIs of tables."""

from pathlib import Path

import pytest
from rqmoe_ray.places import split_uri, table_at

import rqmoe_store as rqs


@pytest.mark.parametrize("uri", ["{}/db/docs", "{}/db/docs.lance", "{}/db/docs.lance/"])
def test_paths(tmp_path, uri):
    for given in (uri.format(tmp_path), Path(uri.format(tmp_path))):
        db, name = table_at(given, None)
        assert (db.uri, name) == (str(tmp_path / "db"), "docs")


def test_relative_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    db, name = table_at("db/docs.lance", None)
    assert (db.uri, name) == (str(tmp_path / "db"), "docs")


def test_buckets():
    assert split_uri("s3://bucket/some/db/docs") == ("s3://bucket/some/db", "docs")


@pytest.mark.parametrize("uri", [None, 3, "s3://bucket", "s3://", "/", "/tmp/x/.lance"])
def test_refused(uri):
    with pytest.raises(rqs.InvalidInputError, match="as a table; expected"):
        table_at(uri, None)
