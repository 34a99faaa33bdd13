"""Where a path or URI leads: a pyarrow file system and a path in it."""

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from rqmoe_store.errors import InvalidInputError

_S3 = ("s3", "s3a")
_S3_ARGUMENTS = {
    "aws_access_key_id": "access_key",
    "aws_secret_access_key": "secret_key",
    "aws_session_token": "session_token",
    "aws_region": "region",
    "region": "region",
    "aws_endpoint": "endpoint_override",
    "aws_endpoint_url": "endpoint_override",
    "endpoint": "endpoint_override",
    "endpoint_url": "endpoint_override",
}
"""Options as LanceDB names them -> arguments of pyarrow's S3 file system."""


def is_uri(location: str) -> bool:
    """Whether `location` is a URI and not a path."""
    return "://" in location


def absolute(location: str) -> str:
    """`location` as it reads from anywhere, without a slash at its end."""
    if is_uri(location):
        return location.rstrip("/")
    return os.path.abspath(Path(location).expanduser())


def filesystem_of(location: str, storage_options: Mapping[str, str] | None) -> tuple[pafs.FileSystem, str]:
    """The file system that `location` is in, and its path there.

    Args:
        location: a path, or a URI such as s3://bucket/folder.
        storage_options: as LanceDB takes them, for S3; other stores read their credentials from the
            environment.

    Raises:
        InvalidInputError: a URI or options that cannot be used.
    """
    if not is_uri(location):
        return pafs.LocalFileSystem(), absolute(location)
    scheme, _, path = location.partition("://")
    try:
        if scheme in _S3 and storage_options:
            return pafs.S3FileSystem(**_s3_arguments(storage_options)), path.rstrip("/")
        filesystem, path = pafs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidInputError(
            f"{location!r} cannot be opened ({error}); expected a path, or the URI of an object store, such "
            "as s3://bucket/folder."
        ) from error
    if storage_options:
        raise InvalidInputError(
            f"Got storage_options for {scheme}://, which takes its credentials from the environment; "
            "expected them for s3:// only. Leave them out, or pass a pyarrow dataset with a file system of "
            "its own."
        )
    return filesystem, path.rstrip("/")


def _s3_arguments(storage_options: Mapping[str, str]) -> dict[str, object]:
    options = {name.lower(): value for name, value in storage_options.items()}
    arguments: dict[str, object] = {
        _S3_ARGUMENTS[name]: value for name, value in options.items() if name in _S3_ARGUMENTS
    }
    endpoint = str(arguments.get("endpoint_override", ""))
    if _is_true(options.get("allow_http") or options.get("aws_allow_http")) and not endpoint.startswith(
        "https"
    ):
        arguments["scheme"] = "http"
    if _is_true(options.get("skip_signature") or options.get("aws_skip_signature")):
        arguments["anonymous"] = True
    return arguments


def _is_true(text: str | None) -> bool:
    return str(text).lower() in ("true", "1", "yes")
