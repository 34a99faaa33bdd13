"""Which codecs the tables of a database need, in every version of them that can still be opened."""

import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import cast

import lance
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.errors import TableError
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.lance_failures import panics_as_errors
from rqmoe_store.store.metadata import TableMarks, has_marks
from rqmoe_store.store.sql import quoted


def unneeded_codecs(db: DBConnection, candidates: Collection[str], recent: Collection[str]) -> set[str]:
    """Those of the codecs that no version of any table of `db` needs.

    Tags and branches count: the versions they keep can be opened. A version needs its newest codec and every
    other one that a row of it was encoded with. What a codec of `recent` has replaced counts as needed, too:
    who began to add rows before may not have committed them yet.

    Args:
        db: a database in a folder or bucket.
        candidates: fingerprints.
        recent: fingerprints of codecs that may have been given to a table a short while ago.

    Raises:
        TableError: a table cannot be read, so that nobody knows what it needs.
    """
    left = set(candidates)
    for name in databases.table_names(db):
        if not left:
            break
        try:
            with panics_as_errors():
                for dataset in _versions(db, name):
                    left -= _needed(dataset, name, left, recent)
        except Exception as error:  # whatever is wrong with a table, Lance has no class of its own for it
            raise TableError(f"table {name!r} cannot be read ({error})") from error
    return left


def places_in_use(dataset: lance.LanceDataset, marks: TableMarks) -> list[int]:
    """Places in `marks.generations` of those that any row has a code of; the last is always among them.

    Args:
        dataset: the version of a table that the marks are of.
        marks: its marks.
    """
    firsts, last = marks.first_partitions, len(marks.generations) - 1
    if last < 1 or not _any_in(dataset, marks, 0, firsts[last]):
        return [last] if marks.generations else []
    return [place for place in range(last) if _any_in(dataset, marks, *firsts[place : place + 2])] + [last]


def _any_in(dataset: lance.LanceDataset, marks: TableMarks, first: int, stop: int) -> bool:
    """Whether any row has a partition id from `first` up to, but without, `stop`."""
    column = quoted(CodeColumns(marks.vector_column).partition)
    return _any(dataset, f"{column} >= {first} AND {column} < {stop}")


def _any(dataset: lance.LanceDataset, condition: str) -> bool:
    found = dataset.scanner(columns=[], filter=condition, with_row_id=True, limit=1).to_table()
    return bool(found.num_rows)


def _versions(db: DBConnection, name: str) -> Iterator[lance.LanceDataset]:
    """Every version of a table that can be opened, newest first, of all branches."""
    table = databases.open_if_exists(db, name)
    if table is None:
        return  # listed for a folder that an interrupted write left, without any version in it
    newest = cast(LanceTable, table).to_lance()
    for branch in [None, *newest.branches.list()]:
        line = newest if branch is None else newest.checkout_version((branch, None))
        for number in reversed(_numbers(line)):
            try:
                version = line.checkout_version((branch, number))
            except (OSError, ValueError, RuntimeError):
                if number in _numbers(line):  # otherwise it was cleaned up since
                    raise
            else:
                yield version


def _numbers(line: lance.LanceDataset) -> list[int]:
    return [int(reference["version"]) for reference in line.version_refs()]


def _needed(
    dataset: lance.LanceDataset, name: str, candidates: Iterable[str], recent: Collection[str]
) -> set[str]:
    """Those of the codecs that one version of a table needs."""
    if not has_marks(dataset.schema):
        _require_uncoded(dataset)
        return set()
    marks = TableMarks.read(dataset.schema, name)
    names = [mark.fingerprint for mark in marks.generations]
    replaced = {older for older, newer in itertools.pairwise(names) if newer in recent}
    needed = {*replaced, *names[-1:]}
    if needed.issuperset(set(candidates) & set(names)):
        return needed
    return needed | {names[place] for place in places_in_use(dataset, marks)}


def _require_uncoded(dataset: lance.LanceDataset) -> None:
    """Raise TableError for a table that lost its marks and not its codes: their codec is all it has left."""
    types = {field.name: field.type for field in dataset.schema}
    for field in dataset.schema:
        columns = CodeColumns(field.name.removesuffix("_code"))
        if (
            columns.code == field.name
            and pa.types.is_fixed_size_binary(field.type)
            and types.get(columns.partition) == pa.int32()
            and _any(dataset, f"{quoted(columns.code)} IS NOT NULL")
        ):
            raise TableError(f"it has codes in column {field.name!r}, but nothing says of which codec")
