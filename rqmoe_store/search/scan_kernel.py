"""Scan by a Triton kernel that writes the rows that may be among the best, and nothing of the others.

Table entries of up to 32 queries are rounded down to a byte each and lie side by side, so that one load of 16
bytes has those of 16 queries; the tables of a group of queries stay in the caches of the core. A code is read
once for a group. Two 16-bit sums share each 32-bit addition. Sums of rounded entries are lower bounds of
scores. Rows whose bound is no worse than the worst score to keep are candidates, whose scores are then
computed from the exact entries.

A sample of rows gives the first worst score. Tiles of rows are scanned in levels, every 512th tile first,
say, then every 64th, then every 8th, then all others. The best of each level lower the worst score to keep
for the next one, so that a query has some 20 times as many candidates as it keeps, however many rows there
are.

Shape legend: Q queries, V queries filled up to whole groups, P partitions, R runs of rows, T tiles, M code
bytes, K codewords, C candidates of a query, H rows found of all queries.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton takes the annotations of a kernel's arguments for types of its own.

from typing import NamedTuple

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from rqmoe_store.codecs.kernels import kernel
from rqmoe_store.search.device_copies import sent
from rqmoe_store.search.tensor_scan import Scorer

_QUERIES_PER_WORD = 4
_MOST_WORDS = 8
_TABLE_BYTES = 160 * 2**10
"""Most bytes of the tables of a group: they are to stay in the first cache, of 256 KiB on an H100."""

_BETWEEN = 8
"""Of the tiles of a level, the level before has one in this many."""

_SAMPLE_ROWS = 2**16
_LEAST_CAPACITY, _CAPACITY_FACTOR = 2**14, 64
"""Candidates of a query that there is room for: at least so many, and so many times those to keep."""

_TRIES = 4
_LARGEST_BYTE = 255


class TileShape(NamedTuple):
    """How a program of the kernel scans a tile."""

    rows: int
    warps: int


TILE_SHAPE = TileShape(rows=256, warps=4)


class _Level(NamedTuple):
    """Tiles that are scanned together: every `stride`-th one."""

    stride: int
    skips: bool
    """Whether it leaves out those of the levels before, every (_BETWEEN * stride)-th."""

    def size(self, tiles: int) -> int:
        """The number of its tiles, out of so many."""
        skipped = -(-tiles // (_BETWEEN * self.stride)) if self.skips else 0
        return -(-tiles // self.stride) - skipped


def scan_tiles(
    scorer: Scorer, size: int, shape: TileShape = TILE_SHAPE
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows that include the `size` best ones of every query: queries (H,), scores (H,) and positions (H,).

    Returns None if queries have more candidates than there is room for, such as rows of equal scores.
    """
    worst_Q = _sampled_worst(scorer, size)
    tiles = _Tiles.of(scorer, shape)
    search = _Search(scorer, tiles, _RoundedTables.of(scorer), size)
    for level in _levels(tiles.total, shape.rows):
        found = search.scan_level(level, worst_Q)
        if found is None:
            return None
        worst_Q = found
    return search.found(worst_Q)


def _sampled_worst(scorer: Scorer, size: int) -> Tensor:
    """A bound of every query's `size` best scores (Q,): that of a sample of rows."""
    rows = scorer.runs.rows
    wanted = min(rows, max(_SAMPLE_ROWS, 4 * size), scorer.chunk_rows)
    places_C = torch.arange(wanted, device=scorer.device) * rows // wanted
    scores_QC = scorer.scores(scorer.runs.positions(places_C))
    if size > wanted:
        return scores_QC.new_full((scorer.queries,), torch.inf)
    return scores_QC.topk(size, dim=1, largest=False).values[:, -1]


def _levels(tiles: int, tile_rows: int) -> list[_Level]:
    """The levels of so many tiles; the first one has more rows than the sample."""
    strides = [1]
    while tiles // (strides[0] * _BETWEEN) * tile_rows >= _SAMPLE_ROWS:
        strides.insert(0, strides[0] * _BETWEEN)
    return [_Level(stride, place > 0) for place, stride in enumerate(strides)]


class _Tiles(NamedTuple):
    """Consecutive rows of one partition each, up to `shape.rows` of them."""

    first_T: Tensor
    last_T: Tensor
    """The position behind the last row."""
    partitions_T: Tensor
    shape: TileShape

    @property
    def total(self) -> int:
        """The number of tiles."""
        return len(self.first_T)

    @classmethod
    def of(cls, scorer: Scorer, shape: TileShape) -> "_Tiles":
        """The tiles of all runs of rows."""
        runs, device, rows = scorer.runs, scorer.device, shape.rows
        tiles_R = -(-(runs.stops_R - runs.starts_R) // rows)
        ends_R = np.cumsum(tiles_R)
        # A tile of the run that ends with tile E starts at start + (tile - (E - tiles)) * rows.
        origins_R = runs.starts_R - (ends_R - tiles_R) * rows
        table_4R = np.stack([ends_R, origins_R, runs.stops_R, runs.partitions_R])
        ends, origins, stops, partitions = sent(table_4R, device)
        tiles_T = torch.arange(int(ends_R[-1]), device=device)
        runs_T = torch.searchsorted(ends, tiles_T, right=True)
        first_T = origins[runs_T] + tiles_T * rows
        return cls(first_T, torch.minimum(first_T + rows, stops[runs_T]), partitions[runs_T].int(), shape)


class _RoundedTables(NamedTuple):
    """Table entries in bytes: sum of bytes * unit + lowest + initial score <= sum of entries.

    Under cosine, entries are the negative ones, since a score is 1 - sum / length there.
    """

    words: int
    """Words of four queries in a group."""
    entries: Tensor
    """int32 (groups, M, K, words)."""
    units_V: Tensor
    offsets_PV: Tensor
    """In units: the lowest sum of a row of the partition, less what rounding may take from it; infinite for
    partitions that a query does not probe."""

    @classmethod
    def of(cls, scorer: Scorer) -> "_RoundedTables":
        """The tables of all queries; units are 1 where a query fills up a group."""
        sign = 1.0 if scorer.norms_N is None else -1.0
        entries_MQK, initial_QP = scorer.entries_MQK * sign, scorer.scores_QP * sign
        steps, queries, codewords = entries_MQK.shape
        words = _words_per_group(steps, queries)
        low_MQ1 = entries_MQK.amin(dim=2, keepdim=True)
        width_Q = (entries_MQK.amax(dim=2) - low_MQ1[..., 0]).amax(dim=0)
        largest_Q = entries_MQK.abs().amax(dim=2).sum(dim=0) + initial_QP.abs().amax(dim=1)
        # Lengths smaller than what rounding of a sum changes need no finer unit.
        rounding_Q = (steps + 16) * 2**-22 * largest_Q
        units_Q = torch.maximum(width_Q / _LARGEST_BYTE, rounding_Q / 16).clamp(min=1e-30)
        bytes_MQK = ((entries_MQK - low_MQ1) / units_Q[:, None]).clamp_(0, _LARGEST_BYTE).to(torch.uint8)
        lowest_Q1 = (low_MQ1[..., 0].sum(dim=0) - rounding_Q)[:, None]
        offsets_QP = (initial_QP + lowest_Q1) / units_Q[:, None] - 0.01
        offsets_QP.masked_fill_(~scorer.probed_QP, torch.inf)
        filled = -queries % (_QUERIES_PER_WORD * words)
        padded_MVK = torch.nn.functional.pad(bytes_MQK, (0, 0, 0, filled))
        grouped = padded_MVK.view(steps, -1, words * _QUERIES_PER_WORD, codewords).permute(1, 0, 3, 2)
        return cls(
            words,
            grouped.contiguous().view(torch.int32),
            torch.nn.functional.pad(units_Q, (0, filled), value=1.0),
            torch.nn.functional.pad(offsets_QP.T, (0, filled), value=torch.inf).contiguous(),
        )


def _words_per_group(steps: int, queries: int) -> int:
    words = 1
    while words < _MOST_WORDS and words * _QUERIES_PER_WORD < queries:
        words *= 2
    while words > 1 and steps * 2**10 * words > _TABLE_BYTES:
        words //= 2
    return words


class _Search:
    """The candidates of all queries, level by level."""

    def __init__(self, scorer: Scorer, tiles: _Tiles, tables: _RoundedTables, size: int) -> None:
        self._scorer, self._tiles, self._tables, self._size = scorer, tiles, tables, size
        self._capacity = max(_LEAST_CAPACITY, _CAPACITY_FACTOR * size)
        shape = len(tables.units_V), self._capacity
        self._rows_VC = torch.zeros(shape, dtype=torch.int64, device=scorer.device)
        self._counts_V = torch.zeros(shape[0], dtype=torch.int32, device=scorer.device)
        self._levels: list[tuple[Tensor, Tensor]] = []
        self._best_QC = torch.empty(scorer.queries, 0, device=scorer.device)

    def scan_level(self, level: _Level, worst_Q: Tensor) -> Tensor | None:
        """Add the candidates of a level, and return the worst score to keep from then on.

        A level with more candidates of a query than there is room for is scanned again, with the worst score
        of those that had room. Returns None if that does not help.
        """
        for _ in range(_TRIES):
            most = self._collect(level, worst_Q)
            rows_QC, scores_QC, best_QC = self._scored(min(most, self._capacity))
            lower_Q = worst_Q
            if best_QC.shape[1] == self._size:
                lower_Q = torch.minimum(worst_Q, best_QC[:, -1])
            if most <= self._capacity:
                self._levels.append((rows_QC, scores_QC))
                self._best_QC = best_QC
                return lower_Q
            if not bool((lower_Q < worst_Q).any()):
                return None
            worst_Q = lower_Q
        return None

    def _collect(self, level: _Level, worst_Q: Tensor) -> int:
        """Run the kernel; returns the number of candidates of the query that has most."""
        scorer, tiles, tables = self._scorer, self._tiles, self._tables
        self._counts_V.zero_()
        norms, allowed = scorer.norms_N, scorer.allowed_N
        codes_NW, anything = scorer.codes_NW, self._counts_V
        grid = level.size(tiles.total), len(tables.entries)
        with torch.cuda.device_of(codes_NW):
            _scan_kernel[grid](
                *(codes_NW, tables.entries, tables.offsets_PV, self._slopes_of(worst_Q)),
                anything if norms is None else norms,
                anything if allowed is None else allowed.view(torch.uint8),
                *(*tiles[:3], self._counts_V, self._rows_VC, self._capacity, len(tables.units_V)),
                *(scorer.first_norm, level.stride, _BETWEEN if level.skips else 1),
                STEPS=scorer.steps,
                CODE_WORDS=codes_NW.shape[1],
                WORDS=tables.words,
                ROWS=tiles.shape.rows,
                HAS_NORMS=norms is not None,
                HAS_MASK=allowed is not None,
                num_warps=tiles.shape.warps,
            )
        return int(self._counts_V.max())

    def _slopes_of(self, worst_Q: Tensor) -> Tensor:
        """The largest sums of entries of rows to keep, in units, and by length under cosine (V,)."""
        sums_Q = worst_Q if self._scorer.norms_N is None else worst_Q - 1
        sums_Q = sums_Q + 2**-20 * (2 + worst_Q.abs()) if self._scorer.norms_N is not None else sums_Q
        units_V = self._tables.units_V
        slopes_V = torch.full_like(units_V, -torch.inf)
        slopes_V[: len(sums_Q)] = sums_Q / units_V[: len(sums_Q)]
        return slopes_V

    def _scored(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and exact scores (Q, C) of candidates, infinite where a query has fewer, and the best scores
        of all levels."""
        queries = self._scorer.queries
        rows_QC = self._rows_VC[:queries, :count].clone()
        scores_QC = self._scorer.scores_of_own(rows_QC)
        places_C = torch.arange(count, device=self._scorer.device)
        scores_QC.masked_fill_(places_C >= self._counts_V[:queries, None], torch.inf)
        together_QC = torch.cat([self._best_QC, scores_QC], dim=1)
        kept = min(self._size, together_QC.shape[1])
        return rows_QC, scores_QC, together_QC.topk(kept, dim=1, largest=False).values

    def found(self, worst_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All candidates at least as good as the worst ones to keep."""
        rows_QC = torch.cat([rows for rows, _ in self._levels], dim=1)
        scores_QC = torch.cat([scores for _, scores in self._levels], dim=1)
        kept_QC = (scores_QC <= worst_Q[:, None]) & (scores_QC < torch.inf)
        queries_H, columns_H = kept_QC.nonzero(as_tuple=True)
        # By positions: another look at the mask would wait for the GPU again.
        return queries_H, scores_QC[queries_H, columns_H], rows_QC[queries_H, columns_H]


@kernel("first_norm", "stride", "between")
def _scan_kernel(
    codes_ptr, entries_ptr, offsets_ptr, slopes_ptr, norms_ptr, mask_ptr,
    first_ptr, last_ptr, partition_ptr, counts_ptr, rows_ptr, capacity, queries, first_norm, stride, between,
    STEPS: tl.constexpr, CODE_WORDS: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr,
    HAS_NORMS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    if between > 1:  # those of the level before are left out
        tile = tile // (between - 1) * between + tile % (between - 1) + 1
    tile *= stride
    group = tl.program_id(1)
    rows = tl.load(first_ptr + tile) + tl.arange(0, ROWS)
    inside = rows < tl.load(last_ptr + tile)
    offsets_ptr += tl.load(partition_ptr + tile).to(tl.int64) * queries
    even, odd = _sum_bytes(
        codes_ptr, entries_ptr + group * (STEPS * 256 * WORDS), rows, inside, STEPS, CODE_WORDS, WORDS, ROWS
    )
    if HAS_MASK:
        inside = inside & (tl.load(mask_ptr + rows, mask=inside, other=0) > 0)
    lengths = tl.full([ROWS], 1.0, tl.float32)
    if HAS_NORMS:
        norms = tl.load(norms_ptr + (rows - first_norm), mask=inside, other=0).to(tl.int32) & 0xFFFF
        lengths = tl.sqrt(((norms << 12) + 864026624).to(tl.float32, bitcast=True))
    first_queries = (group * WORDS + tl.arange(0, WORDS)) * 4
    kept = tl.zeros([ROWS, WORDS], tl.int32)
    for place in tl.static_range(4):
        sums = ((even if place % 2 == 0 else odd) >> (16 if place >= 2 else 0)) & 0xFFFF
        slopes = tl.load(slopes_ptr + first_queries + place)
        offsets = tl.load(offsets_ptr + first_queries + place)
        limits = slopes[None, :] * lengths[:, None] - offsets[None, :]
        kept += ((sums.to(tl.float32) <= limits) & inside[:, None]).to(tl.int32) << place
    if tl.max(kept) > 0:
        _write_rows(kept, first_queries, rows, counts_ptr, rows_ptr, capacity, WORDS, ROWS)


@kernel()
def _sum_bytes(
    codes_ptr, entries_ptr, rows, inside,
    STEPS: tl.constexpr, CODE_WORDS: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sums of the entries that codes select, in 16 bits each: of bytes 0 and 2 of words, and of 1 and 3."""
    even = tl.zeros([ROWS, WORDS], tl.int32)
    odd = tl.zeros([ROWS, WORDS], tl.int32)
    columns = tl.arange(0, WORDS)
    for word in tl.static_range(CODE_WORDS):
        codes = tl.load(codes_ptr + rows * CODE_WORDS + word, mask=inside, other=0)
        codes = codes[:, None] + tl.zeros(
            [ROWS, WORDS], tl.int32
        )  # goes to other threads once for four bytes
        for place in tl.static_range(4):
            if 4 * word + place < STEPS:
                entry = (4 * word + place) * 256 + ((codes >> (8 * place)) & 0xFF)
                packed = tl.load(entries_ptr + entry * WORDS + columns[None, :])
                even += packed & 0x00FF00FF
                odd += (packed >> 8) & 0x00FF00FF
    return even, odd


@kernel()
def _write_rows(
    kept, first_queries, rows, counts_ptr, rows_ptr, capacity, WORDS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Append rows to the candidates of queries, as far as there is room, and count them."""
    for place in tl.static_range(4):
        mask = ((kept >> place) & 1) > 0
        queries = (first_queries + place)[None, :] + tl.zeros([ROWS, WORDS], tl.int32)
        taken = tl.atomic_add(counts_ptr + queries, 1, mask=mask, sem="relaxed")
        target = rows_ptr + queries.to(tl.int64) * capacity + taken
        tl.store(target, rows[:, None] + tl.zeros([ROWS, WORDS], tl.int64), mask=mask & (taken < capacity))
