"""Where an export goes: written under another name beside it, and moved there once it is complete."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rqmoe_store.errors import InvalidInputError

DESCRIPTION = "_export.json"
"""A file in every folder that was exported, which says what is in it. Readers of folders of Parquet files
leave out names that begin with an underscore."""


@contextlib.contextmanager
def written_whole(targets: list[Path], *, overwrite: bool) -> Iterator[list[Path]]:
    """Paths to write to instead of `targets`, which are moved there, in this order, if all goes well.

    Whatever goes wrong, what was there stays, and nothing else is left.

    Args:
        targets: files or folders of one folder, which must exist.
        overwrite: whether they may replace what is there: files, and folders that were exported.

    Raises:
        InvalidInputError: a target exists and may not be replaced, or there is no folder to write to.
    """
    for target in targets:
        _require_free(target, overwrite)
    folder = Path(tempfile.mkdtemp(dir=targets[0].parent, prefix=f".{targets[0].name}."))
    try:
        written = [folder / target.name for target in targets]
        yield written
        for path in written:
            _reach_disk(path)
        for path, target in zip(written, targets, strict=True):
            _move(path, target, folder / f"{target.name}.replaced")
    finally:
        shutil.rmtree(folder)


def describe(folder: Path, **facts: Any) -> None:
    """Say in an exported folder what is in it."""
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=2))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in _files(path))


def _require_free(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise InvalidInputError(f"There is no folder {str(target.parent)!r} to export to; make it first.")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InvalidInputError(
            f"{str(target)!r} exists already; give another path to export to, or overwrite=True."
        )
    exported = (target / DESCRIPTION).is_file() or (target.is_dir() and not any(target.iterdir()))
    if target.is_dir() and (target.is_symlink() or not exported):
        raise InvalidInputError(
            f"{str(target)!r} is a folder that was not exported, or a link to one, and is not replaced even "
            "with overwrite=True. Give another path, or remove it first."
        )


def _reach_disk(path: Path) -> None:
    """Have what was written survive a power cut."""
    for file in _files(path):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def _move(path: Path, target: Path, aside: Path) -> None:
    """Put `path` in the place of `target`; what a file cannot replace, or a folder, goes aside first."""
    if not target.is_dir() and not (path.is_dir() and target.exists()):
        path.replace(target)
        return
    target.replace(aside)
    try:
        path.replace(target)
    except OSError:
        aside.replace(target)
        raise


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
