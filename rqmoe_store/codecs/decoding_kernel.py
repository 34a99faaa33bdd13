"""Decoding by a Triton kernel: gathers, features, gates and contraction of a tile of codes, in one launch.

The hidden units of a tile never leave the chip. Products are of bfloat16 numbers, and summed in float32, as
are base codewords. Small batches share out the steps of a tile, too: their programs write a sum per step, and
these are added in the order of steps.

Shape legend: B codes, C codes of a launch, M steps, K codewords, S steps with experts, D dimension, W network
width, E conditioning width, N experts filled up to 16, J hidden units of all experts, those of each filled up
to whole blocks, P partitions.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton takes the annotations of a kernel's arguments for types of its own.

from typing import NamedTuple

import torch
import torch.nn.functional as functional
import triton.language as tl
from torch import Tensor

from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.kernels import kernel
from rqmoe_store.codecs.kinds import RQMoE
from rqmoe_store.codecs.quantizer import ResidualQuantizer

_CHUNK = 128
"""Most columns of a product; wider ones are several products."""

_MOST_CHUNKS = 3
_MOST_EXPERTS = 16
_MOST_SPLIT = 4_096
"""Most codes of narrow experts whose steps are shared out: more have tiles enough for all multiprocessors."""

_MOST_WIDE, _MOST_NARROW = 2**14, 2**20
"""Most codes of a launch. The steps of wide experts are always shared out, since sums of all steps, beside a
conditioning vector, would take more registers than there are; every step then writes a vector for each code.
"""

_NEVER = -1e30
"""The logit of an expert that only fills up a product."""


class TileShape(NamedTuple):
    """How a program of the kernel decodes a tile."""

    rows: int
    block: int
    """Hidden units that are computed at a time."""
    warps: int
    stages: int
    """Blocks of weights that are loaded ahead, and the one in use."""


NARROW_TILE, SPLIT_TILE, WIDE_TILE = (
    TileShape(128, 64, 8, 3),
    TileShape(64, 64, 4, 3),
    TileShape(64, 32, 8, 2),
)
"""For up to 128 columns and all steps, for up to 128 columns and one step, and for more columns."""


def supports(quantizer: ResidualQuantizer) -> bool:
    """Whether the kernel decodes codes of this quantizer."""
    mixture = quantizer.mixture
    return (
        isinstance(quantizer, RQMoE)
        and mixture is not None
        and mixture.num_layers == 1
        and mixture.num_experts <= _MOST_EXPERTS
        and max(mixture.width, quantizer.condition_dim) <= _MOST_CHUNKS * _CHUNK
    )


class FusedDecoder:
    """A quantizer's weights in the form that the kernel reads, on a GPU."""

    def __init__(
        self,
        quantizer: ResidualQuantizer,
        folded: FoldedExperts,
        dtype: torch.dtype = torch.bfloat16,
        shapes: tuple[TileShape, TileShape] | None = None,
    ) -> None:
        """Prepare to decode.

        Args:
            quantizer: a quantizer that the kernel supports.
            folded: its experts in float32.
            dtype: number format of the factors of products.
            shapes: of tiles, for all steps and for one, with blocks of the same size; None for those that
                suit the widths.
        """
        assert isinstance(quantizer, RQMoE) and quantizer.mixture is not None, "checked by supports()"
        mixture = quantizer.mixture
        self._quantizer, self._projection_WD = quantizer, folded.output_projection_WD
        self._width, self._condition = _Columns.of(mixture.width), _Columns.of(quantizer.condition_dim)
        self._narrow = max(self._width.chunks, self._condition.chunks) == 1
        default = (NARROW_TILE, SPLIT_TILE) if self._narrow else (WIDE_TILE, WIDE_TILE)
        self._whole, self._split = shapes or default
        self._per_expert = -(-mixture.hidden_dim // self._whole.block) * self._whole.block
        self._weights = self._weights_of(quantizer, folded, dtype)

    def _weights_of(self, quantizer: RQMoE, folded: FoldedExperts, dtype: torch.dtype) -> "_Weights":
        """Weights, filled up with zeros to whole blocks and chunks."""
        experts, hidden = folded.contract_SLNHW.shape[2:4]
        more_units, more_columns = (
            self._per_expert - hidden,
            self._width.filled - folded.contract_SLNHW.shape[4],
        )
        more_condition, units = self._condition.filled - quantizer.condition_dim, experts * hidden

        def fill_units(tensor: Tensor) -> Tensor:
            by_expert = tensor[..., :units].unflatten(-1, (experts, hidden))
            return functional.pad(by_expert, (0, more_units)).flatten(-2)

        def fill_gates(tensor: Tensor, value: float) -> Tensor:
            return functional.pad(tensor[..., units:], (0, _MOST_EXPERTS - experts), value=value)

        map_SEF = functional.pad(folded.condition_SEF, (0, 0, 0, more_condition))
        contract_SNHW = functional.pad(folded.contract_SLNHW[:, 0], (0, more_columns, 0, more_units))
        components = quantizer.expert_components_MKE, quantizer.partition_components_PE
        base_MKD = quantizer.codebooks_MKD[..., : 0 if self._projection_WD is not None else None]
        halves = [
            *(functional.pad(each, (0, more_condition)) for each in components),
            *(fill_gates(map_SEF, 0.0), fill_units(map_SEF), fill_units(folded.codeword_SKF)),
            contract_SNHW.flatten(1, 2),
        ]
        return _Weights(
            functional.pad(base_MKD, (0, more_columns)).contiguous(),
            fill_gates(folded.codeword_SKF, _NEVER).contiguous(),
            *(each.to(dtype).contiguous() for each in halves),
        )

    def decode(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
        """Reconstructions (B, D), float32, of uint8 codes and int64 partition ids on the device."""
        quantizer, projection_WD = self._quantizer, self._projection_WD
        most, codes_BM = _MOST_NARROW if self._narrow else _MOST_WIDE, codes_BM.contiguous()
        parts = [
            self._summed(codes_CM, partitions_C)
            for codes_CM, partitions_C in zip(codes_BM.split(most), partitions_B.split(most), strict=True)
        ]
        summed_BW = parts[0] if len(parts) == 1 else torch.cat(parts)
        if projection_WD is None:
            summed_BD = summed_BW
        else:
            summed_BD = summed_BW @ projection_WD + quantizer.summed_base_codewords(codes_BM.long())
        if quantizer.num_partitions:
            summed_BD = summed_BD + quantizer.partition_offset(partitions_B)
        return quantizer.denormalize(summed_BD)

    def _summed(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
        """Deformations summed over all steps (B, W), with base codewords if they are as wide."""
        count, steps = codes_BM.shape
        split = count <= _MOST_SPLIT or not self._narrow
        shape, parts = (self._split, steps) if split else (self._whole, 1)
        sums_SBW = torch.empty(parts, count, self._width.filled, device=codes_BM.device)
        with torch.cuda.device_of(codes_BM):
            _decode_kernel[-(-count // shape.rows), parts](
                *(codes_BM, partitions_B, *self._weights, sums_SBW, count),
                STEPS=steps,
                FIRST=self._quantizer.first_expert_step,
                CODEWORDS=self._quantizer.codebook_size,
                UNITS=self._weights.map_SEJ.shape[2],
                PER_EXPERT=self._per_expert,
                CHUNK_E=self._condition.chunk,
                CHUNKS_E=self._condition.chunks,
                CHUNK_W=self._width.chunk,
                CHUNKS_W=self._width.chunks,
                ROWS=shape.rows,
                BLOCK=shape.block,
                HAS_BASE=self._projection_WD is None,
                HAS_PARTITIONS=self._quantizer.num_partitions > 0,
                SPLIT=split,
                num_warps=shape.warps,
                num_stages=shape.stages,
            )
        summed_BW = sums_SBW.sum(dim=0) if split else sums_SBW[0]
        return summed_BW[:, : self._quantizer.deformation_dim]


class _Weights(NamedTuple):
    """Weights in the order in which the kernel takes them."""

    base_MKW: Tensor
    """float32; empty if codewords are wider than deformations."""
    gate_word_SKN: Tensor
    """float32, as gates are normalized."""
    components_MKE: Tensor
    initial_PE: Tensor
    gate_map_SEN: Tensor
    map_SEJ: Tensor
    word_SKJ: Tensor
    contract_SJW: Tensor


class _Columns(NamedTuple):
    """Columns in chunks of a power of two."""

    chunk: int
    chunks: int

    @property
    def filled(self) -> int:
        """All columns of the chunks."""
        return self.chunk * self.chunks

    @classmethod
    def of(cls, columns: int) -> "_Columns":
        """The fewest chunks for so many columns."""
        chunk = min(_CHUNK, max(16, 1 << (columns - 1).bit_length()))
        return cls(chunk, -(-columns // chunk))


@kernel()
def _decode_kernel(
    codes_ptr, partitions_ptr, base_ptr, gate_word_ptr, components_ptr, initial_ptr,
    gate_map_ptr, map_ptr, word_ptr, contract_ptr, sums_ptr, count,
    STEPS: tl.constexpr, FIRST: tl.constexpr, CODEWORDS: tl.constexpr, UNITS: tl.constexpr,
    PER_EXPERT: tl.constexpr, CHUNK_E: tl.constexpr, CHUNKS_E: tl.constexpr, CHUNK_W: tl.constexpr,
    CHUNKS_W: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_BASE: tl.constexpr,
    HAS_PARTITIONS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    part = tl.program_id(1)
    total0, total1, total2 = _zeros(ROWS, CHUNK_W, CHUNKS_W)
    for step in range(part if SPLIT else 0, part + 1 if SPLIT else STEPS):
        code = tl.load(codes_ptr + rows * STEPS + step, mask=inside, other=0).to(tl.int32)
        if HAS_BASE:
            total0, total1, total2 = _add_rows(
                total0, total1, total2, base_ptr, step * CODEWORDS + code, CHUNK_W, CHUNKS_W
            )
        if step >= FIRST:
            given0, given1, given2 = _condition(
                codes_ptr, partitions_ptr, components_ptr, initial_ptr, rows, inside, step,
                STEPS, CODEWORDS, CHUNK_E, CHUNKS_E, ROWS, HAS_PARTITIONS,
            )  # fmt: skip
            total0, total1, total2 = _add_deformations(
                total0, total1, total2, given0, given1, given2, (step - FIRST) * CODEWORDS + code,
                gate_map_ptr + (step - FIRST) * (CHUNK_E * CHUNKS_E * 16), gate_word_ptr,
                map_ptr + (step - FIRST) * (CHUNK_E * CHUNKS_E * UNITS), word_ptr,
                contract_ptr + (step - FIRST) * (UNITS * CHUNK_W * CHUNKS_W),
                UNITS, PER_EXPERT, CHUNK_E, CHUNKS_E, CHUNK_W, CHUNKS_W, BLOCK,
            )  # fmt: skip
    target = (
        sums_ptr + ((part * count + rows) * (CHUNK_W * CHUNKS_W))[:, None] + tl.arange(0, CHUNK_W)[None, :]
    )
    tl.store(target, total0, mask=inside[:, None])
    if CHUNKS_W > 1:
        tl.store(target + CHUNK_W, total1, mask=inside[:, None])
    if CHUNKS_W > 2:
        tl.store(target + 2 * CHUNK_W, total2, mask=inside[:, None])


@kernel()
def _condition(
    codes_ptr, partitions_ptr, components_ptr, initial_ptr, rows, inside, step,
    STEPS: tl.constexpr, CODEWORDS: tl.constexpr, CHUNK_E: tl.constexpr, CHUNKS_E: tl.constexpr,
    ROWS: tl.constexpr, HAS_PARTITIONS: tl.constexpr,
):  # fmt: skip
    """The conditioning vectors of a step: the sums of the components of all steps before it."""
    given0, given1, given2 = _zeros(ROWS, CHUNK_E, CHUNKS_E)
    if HAS_PARTITIONS:
        partition = tl.load(partitions_ptr + rows, mask=inside, other=0)
        given0, given1, given2 = _add_rows(given0, given1, given2, initial_ptr, partition, CHUNK_E, CHUNKS_E)
    for before in range(0, step):
        earlier = tl.load(codes_ptr + rows * STEPS + before, mask=inside, other=0).to(tl.int32)
        place = before * CODEWORDS + earlier
        given0, given1, given2 = _add_rows(given0, given1, given2, components_ptr, place, CHUNK_E, CHUNKS_E)
    return given0, given1, given2


@kernel()
def _zeros(ROWS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """Sums of up to three chunks of columns; those that are not there are numbers."""
    none = tl.zeros([ROWS, CHUNK], tl.float32)
    return none, none if CHUNKS > 1 else 0.0, none if CHUNKS > 2 else 0.0


@kernel()
def _add_rows(sum0, sum1, sum2, table_ptr, rows, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """Sums with the rows of a table added."""
    place = table_ptr + (rows * (CHUNK * CHUNKS))[:, None] + tl.arange(0, CHUNK)[None, :]
    sum0 += tl.load(place).to(tl.float32)
    if CHUNKS > 1:
        sum1 += tl.load(place + CHUNK).to(tl.float32)
    if CHUNKS > 2:
        sum2 += tl.load(place + 2 * CHUNK).to(tl.float32)
    return sum0, sum1, sum2


@kernel()
def _add_deformations(
    total0, total1, total2, given0, given1, given2, entry,
    gate_map_ptr, gate_word_ptr, map_ptr, word_ptr, contract_ptr,
    UNITS: tl.constexpr, PER_EXPERT: tl.constexpr, CHUNK_E: tl.constexpr, CHUNKS_E: tl.constexpr,
    CHUNK_W: tl.constexpr, CHUNKS_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums with the deformations of a step added, block after block of hidden units."""
    half: tl.constexpr = map_ptr.dtype.element_ty
    given0 = given0.to(half)
    given1 = given1.to(half) if CHUNKS_E > 1 else given1
    given2 = given2.to(half) if CHUNKS_E > 2 else given2
    experts = tl.arange(0, 16)
    logits = _product(given0, given1, given2, gate_map_ptr, 16, 0, 16, CHUNK_E, CHUNKS_E)
    logits += tl.load(gate_word_ptr + (entry * 16)[:, None] + experts[None, :])
    logits = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    gates = logits / tl.sum(logits, axis=1)[:, None]
    for start in range(0, UNITS, BLOCK):
        units = start + tl.arange(0, BLOCK)
        hidden = _product(given0, given1, given2, map_ptr, UNITS, start, BLOCK, CHUNK_E, CHUNKS_E)
        hidden += tl.load(word_ptr + (entry * UNITS)[:, None] + units[None, :]).to(tl.float32)
        gate = tl.sum(tl.where(experts[None, :] == start // PER_EXPERT, gates, 0.0), axis=1)
        hidden = (tl.maximum(hidden, 0.0) * gate[:, None]).to(half)
        place = contract_ptr + (units * (CHUNK_W * CHUNKS_W))[:, None] + tl.arange(0, CHUNK_W)[None, :]
        total0 = tl.dot(hidden, tl.load(place), total0)
        if CHUNKS_W > 1:
            total1 = tl.dot(hidden, tl.load(place + CHUNK_W), total1)
        if CHUNKS_W > 2:
            total2 = tl.dot(hidden, tl.load(place + 2 * CHUNK_W), total2)
    return total0, total1, total2


@kernel()
def _product(
    given0, given1, given2, map_ptr, stride, start,
    COLUMNS: tl.constexpr, CHUNK_E: tl.constexpr, CHUNKS_E: tl.constexpr,
):  # fmt: skip
    """The product of all chunks of columns with a matrix, of which some columns are computed."""
    place = map_ptr + (tl.arange(0, CHUNK_E) * stride)[:, None] + start + tl.arange(0, COLUMNS)[None, :]
    product = tl.dot(given0, tl.load(place))
    if CHUNKS_E > 1:
        product = tl.dot(given1, tl.load(place + CHUNK_E * stride), product)
    if CHUNKS_E > 2:
        product = tl.dot(given2, tl.load(place + 2 * CHUNK_E * stride), product)
    return product
