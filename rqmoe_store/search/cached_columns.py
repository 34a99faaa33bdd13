"""Cached columns: values of some columns in memory, found by row id, so that results need no take.

The values of all rows, with a code or without, are in the order of row ids, in pages of contiguous Arrow
arrays. Rows that were added or updated since are in a page of their own, the tail, which comes last and hides
the older values of its rows. Deleted rows stay until the columns are loaded again; no search finds them.

Shape legend: H hits in result order, X some of them, N rows, P pages.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.progress import late_progress
from rqmoe_store.search.loading import row_ids_of, scan_batches
from rqmoe_store.search.row_ids import Positions, RowIdMap, RowIds, row_id_at
from rqmoe_store.search.segments import Mask
from rqmoe_store.store.snapshot import Snapshot

_PAGE_ROWS, _PAGE_BYTES = 2**20, 2**28
"""Most rows and bytes of a page, unless a batch alone has more. Texts then fit Arrow's 32-bit offsets."""

_SMALL_ROWS, _SMALL_SHARE = 65_536, 0.125
"""Columns are loaded again once added, updated and deleted rows are more than this number and this share."""

_WORDS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
"""Bits of a value -> what numpy takes it for."""

_BLOB = b"lance-encoding:blob"


def check_cache_columns(columns: Any) -> tuple[str, ...]:
    """The columns to cache as a tuple, empty for None.

    Raises:
        InvalidInputError: not a list of names, an empty one, or a name twice.
    """
    if columns is None:
        return ()
    if not isinstance(columns, list | tuple) or not all(isinstance(name, str) for name in columns):
        raise InvalidInputError(
            f"Got cache_columns={columns!r}; expected a list of column names, such as ['id'], or None."
        )
    if not columns:
        raise InvalidInputError("Got cache_columns=[]; expected at least one column name, or None.")
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise InvalidInputError(
            f"Got column {doubled[0]!r} twice in cache_columns; expected every name once."
        )
    return tuple(columns)


def require_cacheable(columns: Sequence[str], schema: pa.Schema, hidden: Collection[str]) -> None:
    """Raise InvalidInputError unless a table has these columns, and their values can be cached.

    Args:
        columns: result of `check_cache_columns`.
        schema: of a version of the table.
        hidden: columns that have no values of the user's, such as codes.
    """
    able = [field.name for field in schema if field.name not in hidden and is_cacheable(field)]
    for name in columns:
        if name not in schema.names:
            raise InvalidInputError(
                f"Got unknown column {name!r} in cache_columns; available are {', '.join(able) or 'none'}."
            )
        if name not in able:
            raise InvalidInputError(
                f"Got column {name!r} ({schema.field(name).type}) in cache_columns; expected columns of "
                f"numbers, texts, bytes, times or booleans, here {', '.join(able) or 'none'}. Leave it out: "
                "results take it from the table."
            )


def cacheable(names: Sequence[str], schema: pa.Schema) -> list[str]:
    """The columns out of `names` that a version with this schema has and that can be cached."""
    return [name for name in names if name in schema.names and is_cacheable(schema.field(name))]


def is_cacheable(field: pa.Field) -> bool:
    """Whether a column has one number, text, time, boolean or piece of bytes per row."""
    kind = field.type
    is_single = (
        pa.types.is_primitive(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
    return bool(is_single) and _BLOB not in (field.metadata or {})  # blobs are read as structs


@dataclasses.dataclass(frozen=True, eq=False)
class CachedColumns:
    """The values of some columns in one version of a table; immutable."""

    schema: pa.Schema
    """The columns, as the version has them; empty for none."""
    base_ids: RowIdMap
    """Row ids of the rows that were loaded together, ascending."""
    tail_ids: RowIdMap
    """Row ids of the tail, ascending."""
    pages: tuple[pa.RecordBatch, ...]
    """The values of the base, and of the tail on the last page."""

    @classmethod
    def none(cls) -> "CachedColumns":
        """No columns."""
        no_rows = RowIdMap.of(np.empty(0, np.uint64))
        return cls(pa.schema([]), no_rows, no_rows, (pa.RecordBatch.from_arrays([], names=[]),))

    @classmethod
    def load(cls, snapshot: Snapshot, names: list[str], most_bytes: int) -> "CachedColumns | None":
        """Read columns of all rows of a version; None if they would take more than a number of bytes.

        Besides the values, it takes 8 to 16 bytes a row until it is done, and as much as the values again if
        rows are not stored in the order of row ids. Shows a progress bar on a terminal if it takes long.
        """
        pages: list[pa.RecordBatch] = []
        ids, room = [np.empty(0, np.uint64)], most_bytes
        with late_progress("Loading columns", snapshot.rows) as advance:
            for batches in _page_by_page(scan_batches(snapshot, names, advance)):
                pages.append(_copied(batches, names))
                ids += map(row_ids_of, batches)
                room -= pages[-1].get_total_buffer_size()
                if room < 0:
                    return None
        ids_N = np.concatenate(ids)
        if (ids_N[1:] <= ids_N[:-1]).any():  # rows moved in the table, which keep their ids
            order_N = np.argsort(ids_N)
            ids_N, pages = ids_N[order_N], _reordered(pages, order_N, names)
        schema = _fields(snapshot, names)
        no_tail = pa.RecordBatch.from_arrays([pa.array([], kind) for kind in schema.types], names=names)
        loaded = cls(schema, RowIdMap.of(ids_N), RowIdMap.of(ids_N[:0]), (*pages, no_tail))
        return loaded if loaded.nbytes <= most_bytes else None

    @functools.cached_property
    def names(self) -> list[str]:
        """The columns; empty for none."""
        return list(self.schema.names)

    def has(self, names: Iterable[str]) -> bool:
        """Whether these columns, of which there may be none, can be taken from memory."""
        return bool(self.names) and set(names) <= set(self.names)

    @functools.cached_property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        values = sum(int(page.get_total_buffer_size()) for page in self.pages)
        return values + self.base_ids.nbytes + self.tail_ids.nbytes

    def updated(self, snapshot: Snapshot, changed: Sequence[pa.RecordBatch]) -> "CachedColumns | None":
        """The columns of a later version; None if it is better to load them again.

        Args:
            snapshot: that version.
            changed: row ids and values of all rows that were added or updated since.
        """
        if not self.names:
            return self
        *base, tail = self.pages
        changed_ids = np.concatenate([np.empty(0, np.uint64), *map(row_ids_of, changed)])
        tail_ids = self.tail_ids.at(np.arange(len(self.tail_ids)))
        kept = np.flatnonzero(~np.isin(tail_ids, changed_ids))
        ids = np.concatenate([tail_ids[kept], changed_ids])
        base_rows = len(self.base_ids)
        if base_rows + len(ids) - snapshot.rows > max(_SMALL_ROWS, _SMALL_SHARE * base_rows):
            return None
        order = np.argsort(ids)
        places = np.append(kept, np.arange(len(tail), len(tail) + len(changed_ids)))[order]
        new_tail = _taken([tail, *(_copied([each], self.names) for each in changed)], places, self.names)
        schema = _fields(snapshot, self.names)  # whose metadata may have changed
        return CachedColumns(schema, self.base_ids, RowIdMap.of(ids[order]), (*base, new_tail))

    def take(self, row_ids_H: RowIds, names: Sequence[str]) -> tuple[Mapping[str, pa.Array], Mask]:
        """Some of the columns for the rows that exist, in the order of `row_ids_H`, and which of them do."""
        positions_H = np.int64(-1).repeat(len(row_ids_H))
        _find_rows(self.base_ids.arrays, self.base_ids.size, row_ids_H, 0, positions_H)
        _find_rows(self.tail_ids.arrays, self.tail_ids.size, row_ids_H, self.base_ids.size, positions_H)
        exists_H = positions_H >= 0
        positions_X = positions_H[exists_H]
        if (positions_X < len(self.pages[0])).all():
            return {name: self._take_first(name, positions_X) for name in names}, exists_H
        taken = _taken(self.pages, positions_X, names)
        return {name: taken[name] for name in names}, exists_H

    def _take_first(self, name: str, positions_X: Positions) -> pa.Array:
        """The values of a column at some positions of the first page."""
        words_N = self._words.get(name)
        if words_N is None:
            return self.pages[0][name].take(pa.array(positions_X))
        return as_array(words_N.take(positions_X), self.schema.field(name).type)

    @functools.cached_property
    def _words(self) -> dict[str, npt.NDArray[np.unsignedinteger]]:
        """The values of those columns of the first page that have a few whole bytes each, and no nulls.

        Arrow's `take` runs through so much code that, among other work, it takes 0.1 ms for ten rows.
        """
        words: dict[str, npt.NDArray[np.unsignedinteger]] = {}
        for name, column in zip(self.names, self.pages[0].columns, strict=True):
            is_whole = pa.types.is_primitive(column.type) and column.type.bit_width in _WORDS
            if is_whole and len(column) and column.null_count == 0:
                kind, stop = _WORDS[column.type.bit_width], column.offset + len(column)
                words[name] = np.frombuffer(column.buffers()[1], kind, stop)[column.offset :]
        return words


def as_array(values_H: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Numbers as an Arrow array of a type of as many bytes, in the same memory, without the time that
    `pa.array` takes to find out a type."""
    return pa.Array.from_buffers(kind, len(values_H), [None, pa.py_buffer(values_H)])


def _fields(snapshot: Snapshot, names: Sequence[str]) -> pa.Schema:
    return pa.schema([snapshot.schema.field(name) for name in names])


def _page_by_page(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Yield the batches of one page after the other."""
    page: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if page and (rows + len(batch) > _PAGE_ROWS or size + batch.nbytes > _PAGE_BYTES):
            yield page
            page, rows, size = [], 0, 0
        page.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
    if page:
        yield page


def _reordered(
    pages: Sequence[pa.RecordBatch], order_N: Positions, names: Sequence[str]
) -> list[pa.RecordBatch]:
    """All rows of some pages in another order, on pages that are no larger on average."""
    size = sum(page.nbytes for page in pages)
    rows = max(1, min(_PAGE_ROWS, _PAGE_BYTES * len(order_N) // max(1, size)))
    starts = range(0, len(order_N), rows)
    return [_taken(pages, order_N[start : start + rows], names) for start in starts]


def _copied(batches: Sequence[pa.RecordBatch], names: list[str]) -> pa.RecordBatch:
    """The values of all batches in arrays of their own: those of a batch may be parts of larger buffers."""
    columns = [[batch[name] for batch in batches] for name in names]
    arrays = [pa.concat_arrays([*column, column[0].slice(0, 0)]) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _taken(pages: Sequence[pa.RecordBatch], positions_X: Positions, names: Sequence[str]) -> pa.RecordBatch:
    """The values at some positions, counted through all pages, of which there is at least one."""
    if len(positions_X) == 0 or positions_X.max() < len(pages[0]):
        return pages[0].select(names).take(pa.array(positions_X))
    starts_P = np.cumsum([0, *map(len, pages[:-1])])
    pages_X = np.searchsorted(starts_P, positions_X, side="right") - 1
    # A take of chunked arrays would concatenate all pages.
    parts = [
        pages[page].select(names).take(pa.array((positions_X - starts_P[page])[pages_X == page]))
        for page in np.unique(pages_X)
    ]
    places_X = np.argsort(np.argsort(pages_X, kind="stable"))
    return pa.concat_batches(parts).take(pa.array(places_X))


@compiled
def _find_rows(arrays: Any, size: int, row_ids_H: Any, first: int, positions_H: Any) -> None:
    """Fill in `first` + the position of every row id that is among the ascending ones of a map."""
    for hit in range(len(row_ids_H)):
        low, high = 0, size
        while low < high:
            middle = (low + high) >> 1
            if row_id_at(arrays, middle) < row_ids_H[hit]:
                low = middle + 1
            else:
                high = middle
        if low < size and row_id_at(arrays, low) == row_ids_H[hit]:
            positions_H[hit] = first + low
