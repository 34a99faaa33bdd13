"""Paths, URIs and glob patterns, resolved to a pyarrow file system and the files in it."""

import dataclasses
import fnmatch
import itertools
import os
import re
from collections.abc import Mapping, Sequence
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
    """`location` as an absolute path or URI, without a slash at its end."""
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
        InvalidInputError: the URI or the options cannot be used.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The files that a path, URI or pattern names."""

    filesystem: pafs.FileSystem
    location: str
    """The absolute path or URI; for a pattern, its innermost folder that has no wildcard."""
    path: str
    """Path of `location` in the file system."""
    files: Sequence[str]
    """Paths of the files in the file system."""

    @property
    def locations(self) -> list[str]:
        """Each file as a path or URI."""
        scheme = self.location.partition("://")[0] + "://" if is_uri(self.location) else ""
        return [f"{scheme}{file}" for file in self.files]


def files_at(location: str, storage_options: Mapping[str, str] | None) -> Place:
    """The file at a path or URI, the files of the folder there, or the files that a pattern matches.

    In a pattern, `*`, `?` and `[...]` match characters of one name and `**` matches any folders. If a pattern
    matches a folder, it matches all files in it. A file whose own name looks like a pattern has precedence.
    Folders and patterns leave out files and folders whose names begin with a period or an underscore.

    Raises:
        InvalidInputError: there is nothing, or the URI or the options cannot be used.
    """
    base, patterns = _split(location)
    filesystem, path = filesystem_of(base, storage_options)
    whole = "/".join([path.rstrip("/"), *patterns])
    info = filesystem.get_file_info(whole)
    if info.type != pafs.FileType.NotFound:
        files = [whole] if info.is_file else _inside(filesystem, whole)
        return Place(filesystem=filesystem, location=absolute(location), path=whole, files=files)
    if not patterns:
        raise InvalidInputError(f"There is nothing at {location!r}; expected a file or a folder of files.")
    found = _inside(filesystem, path)
    files = [file for file in found if _matches(file[len(path) + 1 :].split("/"), patterns)]
    if not files:
        raise InvalidInputError(f"No file matches {location!r}; expected one at least.")
    return Place(filesystem=filesystem, location=absolute(base), path=path, files=files)


def common_folder(folders: Sequence[str]) -> str:
    """The innermost folder, as a path or URI, that has all of these folders or is one of them."""
    levels = zip(*(folder.split("/") for folder in folders), strict=False)
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, levels)
    return "/".join(names[0] for names in shared)


def _split(location: str) -> tuple[str, list[str]]:
    """Split a location before its first name with a wildcard into the part before it and the other names."""
    names = location.rstrip("/").split("/")
    first = next((place for place, name in enumerate(names) if re.search(r"[*?\[]", name)), len(names))
    base = "/".join(names[:first])
    if first == len(names):
        return location, []
    return base or ("/" if location.startswith("/") else "."), names[first:]


def _inside(filesystem: pafs.FileSystem, path: str) -> list[str]:
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    files = [each.path for each in filesystem.get_file_info(selector) if each.is_file]
    return [file for file in files if not any(part[:1] in "._" for part in file[len(path) + 1 :].split("/"))]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the names of a path, or those of a folder above it, match the patterns one by one."""
    if not patterns:
        return True
    if patterns[0] == "**":
        return any(_matches(names[skipped:], patterns[1:]) for skipped in range(len(names)))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


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
