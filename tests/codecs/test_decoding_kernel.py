"""The decoding kernel computes what the definition says, and compiles for an H100."""

import json

import numpy as np
import pytest
import small_codecs
import torch
import triton_kernels
from small_codecs import SHAPES, as_codec, small_config, stirred

from rqmoe_store.codecs import decoding_kernel, kernels, prepared
from rqmoe_store.codecs.decoding_kernel import FusedDecoder, TileShape, supports

SMALL_TILE = TileShape(rows=16, block=16, warps=1, stages=2)

# Of factors with so many bits; Triton's interpreter has no bfloat16.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
ERRORS = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 2e-6}

CONFIGS = {
    **{name: (12, shape) for name, shape in SHAPES.items() if name in ("rqmoe", "rqmoe, partitions")},
    "small expert components": (12, SHAPES["rqmoe, small expert components"]),
    "narrow, more hidden units than a block": (12, {"kind": "rqmoe", "network_dim": 5, "hidden_dim": 24}),
    "three chunks of columns": (300, {"kind": "rqmoe", "hidden_dim": 8, "num_experts": 2}),
    "two chunks, narrow components": (200, {"kind": "rqmoe", "hidden_dim": 8, "expert_dim": 20}),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [HALF, torch.float32], ids=str)
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_decodes_as_the_definition_says(monkeypatch, name, dtype, split) -> None:
    dim, shape = CONFIGS[name]
    monkeypatch.setattr(small_codecs, "DIM", dim)
    monkeypatch.setattr(decoding_kernel, "_MOST_SPLIT", 100 if split else 0)
    monkeypatch.setattr(decoding_kernel, "_MOST_NARROW", 30)  # several launches
    monkeypatch.setattr(decoding_kernel, "_MOST_WIDE", 30)
    quantizer = stirred(small_config(**shape)).to(triton_kernels.DEVICE)
    random = np.random.default_rng(0)
    codes_BM = torch.from_numpy(random.integers(0, 16, (40, 4)).astype(np.uint8)).to(triton_kernels.DEVICE)
    partitions_B = torch.from_numpy(random.integers(0, max(1, quantizer.num_partitions), 40))
    partitions_B = partitions_B.to(triton_kernels.DEVICE)
    with torch.inference_mode():
        wanted_BD = quantizer.decode_sequentially(codes_BM.long(), partitions_B)
        folded = quantizer.fold()
        assert supports(quantizer) and folded is not None
        decoder = FusedDecoder(quantizer, folded, dtype, (SMALL_TILE, SMALL_TILE))
        for steps in (4, 1):
            decoded_BD = decoder.decode(codes_BM[:, :steps], partitions_B)
            if steps < 4:
                wanted_BD = quantizer.decode_sequentially(codes_BM[:, :steps].long(), partitions_B)
            assert decoded_BD.dtype == torch.float32 and decoded_BD.shape == (40, dim)
            off = float((decoded_BD - wanted_BD).norm() / wanted_BD.norm())
            assert off <= ERRORS[dtype], off


@pytest.mark.parametrize("name", ["rq", "qinco", "rqmoe, narrow, 2 layers", "rqmoe, 3 layers, partitions"])
def test_leaves_other_quantizers_to_array_operations(name) -> None:
    assert not supports(stirred(small_config(**SHAPES[name])))


def test_leaves_more_experts_than_fit_a_product_to_array_operations() -> None:
    assert supports(stirred(small_config(kind="rqmoe", num_experts=16)))
    assert not supports(stirred(small_config(kind="rqmoe", num_experts=17)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU needs no pretending")
def test_decode_uses_the_kernel_in_bfloat16_and_does_without_if_it_fails(monkeypatch) -> None:
    monkeypatch.setattr(prepared, "has_kernels", lambda device: True)
    monkeypatch.setattr(FusedDecoder.__init__, "__defaults__", (HALF, (SMALL_TILE, SMALL_TILE)))
    monkeypatch.setattr(kernels, "_refused", set())
    codec = as_codec(stirred(small_config(kind="rqmoe", num_partitions=3)))
    codes = codec.encode(small_codecs.vectors(20))
    decode, calls = FusedDecoder.decode, []

    def counted(decoder, codes_BM, partitions_B):
        calls.append(len(codes_BM))
        return decode(decoder, codes_BM, partitions_B)

    monkeypatch.setattr(FusedDecoder, "decode", counted)
    exact = codec.decode(codes)
    assert calls == [], "float32"
    np.testing.assert_allclose(codec.decode(codes, precision="bfloat16"), exact, atol=1e-2)
    assert calls

    def fail(decoder, codes_BM, partitions_B):
        raise ValueError("unsupported instruction")

    monkeypatch.setattr(FusedDecoder, "decode", fail)
    with pytest.warns(UserWarning, match="kernel for the decoding of codes cannot run"):
        decoded = codec.decode(codes, precision="bfloat16")
    np.testing.assert_allclose(decoded, exact, atol=5e-2)


_COMPILE = """
import json, sys
from hopper import compile_kernel
from rqmoe_store.codecs.decoding_kernel import NARROW_TILE, SPLIT_TILE, WIDE_TILE, _decode_kernel
name, steps, chunks_e, chunks_w, split, partitions = json.loads(sys.argv[1])
shape = {"narrow": NARROW_TILE, "split": SPLIT_TILE, "wide": WIDE_TILE}[name]
halves = ("components", "initial", "gate_map", "map", "word", "contract")
pointers = {"codes_ptr": "*u8", "partitions_ptr": "*i64", "base_ptr": "*fp32", "gate_word_ptr": "*fp32",
            **{f"{each}_ptr": "*bf16" for each in halves}, "sums_ptr": "*fp32", "count": "i32"}
constants = {"STEPS": steps, "FIRST": 0 if partitions else 1, "CODEWORDS": 256, "UNITS": 1024,
             "PER_EXPERT": 256, "CHUNK_E": 128, "CHUNKS_E": chunks_e, "CHUNK_W": 128, "CHUNKS_W": chunks_w,
             "ROWS": shape.rows, "BLOCK": shape.block, "HAS_BASE": True, "HAS_PARTITIONS": partitions,
             "SPLIT": split}
made = compile_kernel(_decode_kernel, pointers, constants, num_warps=shape.warps, num_stages=shape.stages)
print(json.dumps([made.stack, made.spills, made.shared, made.code.count("HGMMA")]))
"""


@pytest.mark.parametrize(
    "case",
    [
        ["narrow", 8, 1, 1, False, False],
        ["split", 8, 1, 1, True, False],
        ["wide", 16, 3, 3, True, False],
        ["wide", 16, 1, 3, True, True],
    ],
    ids=str,
)
def test_compiles_for_an_h100_without_spills(case) -> None:
    stack, spills, shared, products = json.loads(
        triton_kernels.compile_for_hopper(_COMPILE, json.dumps(case))
    )
    assert stack == 0 and spills == 0
    assert shared <= 227 * 2**10  # of a multiprocessor
    assert products > 0  # of the units for matrices
