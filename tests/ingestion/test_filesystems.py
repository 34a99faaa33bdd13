"""Paths and URIs, and what LanceDB's options are called by pyarrow. No store is asked."""

import pyarrow.fs as pafs
import pytest

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.filesystems import absolute, filesystem_of


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a/b", "./a/b/", "~/a/b", str(tmp_path / "a" / "b")):
        assert filesystem_of(name, None) == (pafs.LocalFileSystem(), str(tmp_path / "a" / "b"))
    assert filesystem_of((tmp_path / "a").as_uri(), None)[1] == str(tmp_path / "a")
    assert absolute("s3://bucket/a/") == "s3://bucket/a"


def test_options_of_s3():
    options = {
        "AWS_ACCESS_KEY_ID": "key",
        "aws_secret_access_key": "secret",
        "aws_region": "eu-west-3",
        "aws_endpoint": "http://localhost:9",
        "allow_http": "true",
        "new_table_enable_stable_row_ids": "true",
    }
    filesystem, path = filesystem_of("s3://bucket/folder/", options)
    assert path == "bucket/folder"
    expected = pafs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        region="eu-west-3",
        endpoint_override="http://localhost:9",
        scheme="http",
    )
    assert filesystem == expected
    anonymous = pafs.S3FileSystem(anonymous=True, region="eu-west-3")
    assert filesystem_of("s3://b/x", {"skip_signature": "true", "region": "eu-west-3"})[0] == anonymous


def test_uris_that_cannot_be_used():
    with pytest.raises(InvalidInputError, match="cannot be opened"):
        filesystem_of("nothing://a/b", None)
    with pytest.raises(InvalidInputError, match="from the environment"):
        filesystem_of("file:///tmp", {"region": "x"})
