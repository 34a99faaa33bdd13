"""Small quantizers and codecs whose experts really deform, for the tests of codecs and training."""

import dataclasses

import numpy as np
import torch

from rqmoe_store.codecs.additive_fit import fit_tables
from rqmoe_store.codecs.artifact import TrainingReport
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.coder import ResidualCoder
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.correction import DistanceCorrection
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.weights import QuantizerWeights
from rqmoe_store.config import TRANSFORM_KINDS, CodecConfig, TrainConfig
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.initialize import initialize, with_experts
from rqmoe_store.training.trainer import train

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


def matrices(seed: int, rows: int, dim: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random matrices (rows, dim) and (dim, columns) to multiply."""
    random = np.random.default_rng(seed)
    shapes = (rows, dim), (dim, columns)
    first, second = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    return first, second


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
    coder = ResidualCoder(QuantizerWeights.of(quantizer), fit_tables(quantizer, codes))
    return Codec(coder, codes, report)


def same_as_rq(config: CodecConfig) -> ResidualQuantizer:
    """The plain RQ initialized from the same vectors and seed."""
    return untrained(dataclasses.replace(config, kind="rq"))


def trained_small(rows: np.ndarray, seed: int = 0, **changes: object) -> Codec:
    """A codec trained in no time: a transform code, or a residual quantizer of few codewords."""
    settings: dict[str, object] = {"code_bytes": 4, "kind": "rq", **changes}
    if settings["kind"] in TRANSFORM_KINDS:
        config = CodecConfig(**settings)
    else:
        few = {"codebook_size": 16, "num_partitions": 0, "hidden_dim": 8, "num_experts": 2, "beam": 2}
        config = CodecConfig(**{**few, **settings})
    return train(rows, config=config, training=TrainConfig(epochs=1, progress=False, device="cpu", seed=seed))


def corrected(codec: Codec, directions: int = 3) -> Codec:
    """The codec with a random correction of distances."""
    random, config = np.random.default_rng(8), codec.config
    rows = codec.num_partitions + config.code_bytes * config.codebook_size
    correction = DistanceCorrection(
        random.normal(size=(rows, directions + 1)).astype(np.float32),
        random.normal(size=(directions, codec.dim)).astype(np.float32),
        codec.num_partitions,
        config.codebook_size,
    )
    return codec.with_correction(correction)


def exact_distances(queries: np.ndarray, decoded: np.ndarray, metric: str) -> np.ndarray:
    """Distances (Q, n) in LanceDB's definition, in float64."""
    queries, decoded = queries.astype(np.float64), decoded.astype(np.float64)
    products = queries @ decoded.T
    if metric == "dot":
        return 1 - products
    if metric == "cosine":
        return 1 - products / (np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(decoded, axis=1))
    return np.square(queries[:, None] - decoded[None]).sum(axis=2)
