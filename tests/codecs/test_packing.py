"""Size of an artifact, and a lossless round trip from codec to artifact and back."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from small_codecs import as_codec, small_config, stirred

from rqmoe_store.codecs.additive import CALIBRATION_ROWS, complete_tables
from rqmoe_store.codecs.artifact import CodecParts, pack
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import Frame
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.config import CodecConfig

REPORT = as_codec(stirred(small_config(code_bytes=1))).report


def parts_at_random(config: CodecConfig, dim: int) -> CodecParts:
    """Everything a trained codec has, in its full size, with random numbers for weights and codes."""
    generator = torch.Generator().manual_seed(0)
    quantizer = make_quantizer(config, dim).requires_grad_(False)
    for weights in (*quantizer.parameters(), quantizer.mean_D, quantizer.centroids_PD):
        weights.normal_(generator=generator)
    quantizer.round_weights()
    table_rows = max(1, quantizer.num_partitions) + config.code_bytes * config.codebook_size
    corrections_TW = torch.randn(table_rows, quantizer.deformation_dim, generator=generator)
    tables = complete_tables(
        quantizer, corrections_TW.bfloat16().float(), torch.randn(table_rows, 1, generator=generator)
    )
    random = np.random.default_rng(0)
    codes = random.integers(0, config.codebook_size, (CALIBRATION_ROWS, config.code_bytes), dtype=np.uint8)
    partitions = random.integers(0, max(1, quantizer.num_partitions), CALIBRATION_ROWS, dtype=np.int32)
    return CodecParts(quantizer, tables, Codes(codes, partitions), REPORT, Frame.plain(dim))


@pytest.mark.parametrize(
    ("dim", "code_bytes", "num_partitions", "limit"),
    [(1536, 32, 300, 64 * 2**20), (384, 16, 0, 20 * 10**6), (384, 16, 300, 21 * 10**6)],
)
def test_artifacts_of_default_codecs_are_small(
    dim: int, code_bytes: int, num_partitions: int, limit: int
) -> None:
    config = CodecConfig(code_bytes=code_bytes, num_partitions=num_partitions).resolve(dim=dim, rows=499_999)
    artifact = pack(parts_at_random(config, dim))
    assert len(artifact.config_json.encode()) + len(artifact.weights) < limit


def test_saving_a_loaded_codec_gives_the_same_bytes(codec: Codec) -> None:
    """With weights that bfloat16 can hold, as training leaves them, and with such that it cannot."""
    quantizer = copy.deepcopy(codec._quantizer)
    quantizer.round_weights()
    rounded = as_codec(quantizer)
    smaller = len(rounded.to_artifact().weights) < len(codec.to_artifact().weights)
    assert smaller == (codec.config.kind != "rq")  # the codebooks are rounded to begin with
    for saved in (codec, rounded):
        loaded = Codec.from_artifact(saved.to_artifact(), device="cpu")
        for name, value in saved._quantizer.state_dict().items():
            assert torch.equal(value, loaded._quantizer.state_dict()[name]), name
        for field in dataclasses.fields(saved._tables):
            mine, other = getattr(saved._tables, field.name), getattr(loaded._tables, field.name)
            assert torch.equal(torch.as_tensor(mine), torch.as_tensor(other)), field.name
        loaded._artifact = None
        assert loaded.to_artifact() == saved.to_artifact()
