"""Small quantizers and codecs whose experts really deform, for the tests of codecs and training."""

import dataclasses

import numpy as np
import torch

from rqmoe_store.codecs.additive import fit_tables
from rqmoe_store.codecs.artifact import TrainingReport
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.coder import ResidualCoder
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.initialize import initialize, with_experts

DIM = 12

SHAPES = {
    "rq": {"kind": "rq"},
    "rq, partitions": {"kind": "rq", "num_partitions": 3},
    "rqmoe": {"kind": "rqmoe"},
    "rqmoe, partitions": {"kind": "rqmoe", "num_partitions": 3},
    "rqmoe, narrow, 2 layers": {"kind": "rqmoe", "network_dim": 5, "num_layers": 2},
    "rqmoe, 3 layers, partitions": {"kind": "rqmoe", "num_layers": 3, "num_partitions": 3},
    "rqmoe, small expert components": {"kind": "rqmoe", "expert_dim": 4},
    "qinco": {"kind": "qinco"},
    "qinco, narrow, partitions": {"kind": "qinco", "network_dim": 5, "num_partitions": 3, "num_layers": 2},
}


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    """Correlated, skewed vectors: something for experts to learn."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((DIM, DIM)) / 3
    return np.tanh(generator.standard_normal((rows, DIM)) @ mixing).astype(np.float32) * 2 + 0.3


def curved(rows: int, seed: int = 0) -> np.ndarray:
    """Vectors on a curved three-dimensional surface: far better described by deforming codebooks."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((3, DIM)) * 2
    return np.sin(generator.uniform(-1, 1, (rows, 3)) @ mixing).astype(np.float32)


def small_config(**changes: object) -> CodecConfig:
    """A resolved configuration of a tiny codec."""
    settings = {
        "code_bytes": 4, "codebook_size": 16, "num_partitions": 0, "num_experts": 3, "hidden_dim": 8,
        "beam": 4, "preselect": 12,
    }  # fmt: skip
    return CodecConfig(**{**settings, **changes}).resolve(dim=DIM, rows=500)


def untrained(config: CodecConfig, rows: int = 500) -> ResidualQuantizer:
    """The quantizer training starts from."""
    progress = TrainingProgress(visible=False)
    plain = initialize(torch.from_numpy(vectors(rows)), config, seed=0, progress=progress)
    return with_experts(plain, config, seed=0).eval()


def stirred(config: CodecConfig) -> ResidualQuantizer:
    """A quantizer whose experts deform strongly, as if trained."""
    quantizer = untrained(config)
    generator = torch.Generator().manual_seed(7)
    if quantizer.mixture is not None:
        with torch.no_grad():
            for parameter in quantizer.mixture.parameters():
                parameter += torch.randn(parameter.shape, generator=generator) * 0.15
    return quantizer.requires_grad_(False)


def as_codec(quantizer: ResidualQuantizer) -> Codec:
    """The quantizer as a codec, calibrated on random codes."""
    generator = np.random.default_rng(3)
    config = quantizer.config
    codes = Codes(
        generator.integers(0, config.codebook_size, (400, config.code_bytes), dtype=np.uint8),
        generator.integers(0, max(1, quantizer.num_partitions), 400, dtype=np.int32),
    )
    errors = tuple(1.0 / (step + 1) for step in range(config.code_bytes))
    report = TrainingReport(
        rows=500, epochs=0.0, validation_rows=50, variance=1.0, prefix_mse=errors,
        rq_prefix_mse=errors, utilisation=1.0, seconds=0.0,
    )  # fmt: skip
    return Codec(ResidualCoder(quantizer, fit_tables(quantizer, codes)), codes, report)


def same_as_rq(config: CodecConfig) -> ResidualQuantizer:
    """The plain RQ initialized from the same vectors and seed."""
    return untrained(dataclasses.replace(config, kind="rq"))
