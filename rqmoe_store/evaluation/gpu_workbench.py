"""What the parts of the GPU benchmark measure with: sizes, times of work, and codecs made without training.

Shape suffixes: N rows, D dimension, M code bytes, B codes of a batch.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.artifact import TrainingReport
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.prepared import fit_coder
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.codecs.weights import QuantizerWeights
from rqmoe_store.config import CodecConfig, CodecKind, Metric

BATCH = 64
"""Queries that are scanned together."""

SHORTLIST = 1_000
REFINED = 100
"""Rows of a shortlist that refine codes order."""

PAGE = 10
"""Rows of a result."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured: on a GPU, or just enough to try the parts."""

    codecs: tuple[tuple[int, int, int], ...] = ((128, 8, 256), (384, 16, 256))
    """Dimension, steps and hidden units of an expert."""
    batch: int = 2**20
    """Codes decoded together, a quarter as many where vectors are wider than 128 components."""
    torch_batch: int = 2**16
    """Codes decoded together by array operations, whose hidden units are in memory."""
    rows: tuple[int, ...] = (10**6, 10**8)
    checked_rows: int = 400_000
    encoded: int = 2**16
    trained: int = 200_000


TINY = Sizes(((16, 3, 16),), 300, 200, (5_000, 20_000), 3_000, 300, 2_000)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a part measures on, and where it notes what it finds."""

    device: torch.device
    sizes: Sizes
    note: Callable[[str, Any], None]
    vectors: str | None
    """A .npy file to train on; made-up vectors without it."""
    train_seconds: float

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Note what `work` returns, or how it fails, and go on; returns it, or None."""
        try:
            value = work()
        except Exception as error:
            if "illegal memory access" in str(error) or "device-side assert" in str(error):
                raise  # nothing else can be measured in this process
            self.note(name, {"error": f"{type(error).__name__}: {error}"[:400]})
            return None
        self.note(name, value)
        return value

    def seconds(self, work: Callable[[], object], *, repeats: int = 20, most: float = 2.0) -> float:
        """Median time of `work`, with what it starts on the GPU, after warming up."""
        for _ in range(3):
            work()
        self.wait()
        taken: list[float] = []
        while len(taken) < repeats and sum(taken) < most:
            started = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        """`work` as one launch: a CUDA graph of all that it starts."""
        if self.device.type != "cuda":
            return work
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


def made_codec(
    kind: CodecKind,
    dim: int,
    steps: int,
    hidden: int,
    device: torch.device,
    layers: int = 1,
    metric: Metric = "l2",
) -> Codec:
    """A codec of this shape, made without training."""
    config = CodecConfig(
        kind=kind,
        metric=metric,
        code_bytes=steps,
        num_partitions=0,
        hidden_dim=hidden,
        expert_dim=min(dim, 384),
        num_layers=layers,
    ).resolve(dim=dim, rows=10**6)
    torch.manual_seed(0)
    quantizer = make_quantizer(config, dim).requires_grad_(False)
    falling_M11 = torch.linspace(1, 0.3, steps)[:, None, None]
    quantizer.codebooks_MKD.copy_(torch.randn_like(quantizer.codebooks_MKD) * falling_M11)
    quantizer.start_experts()
    if quantizer.mixture is not None:
        quantizer.mixture.contract_SLNHW.normal_(std=0.02)
    random = np.random.default_rng(1)
    codes_NM = random.integers(0, 256, (2048, steps)).astype(np.uint8)
    calibration = Codes(codes_NM, np.zeros(2048, np.int32))
    errors = tuple(1.0 / (step + 1) for step in range(steps))
    report = TrainingReport(
        rows=1,
        epochs=0.0,
        validation_rows=1,
        variance=1.0,
        prefix_mse=errors,
        rq_prefix_mse=errors,
        utilisation=1.0,
        seconds=0.0,
    )
    return Codec(fit_coder(QuantizerWeights.of(quantizer), calibration, str(device)), calibration, report)


def random_vectors(dim: int, rows: int) -> Float32Array:
    """Made-up vectors (N, D) whose components depend on each other."""
    mixing_DD = np.random.default_rng(4).standard_normal((dim, dim)).astype(np.float32) / dim**0.5
    drawn_ND = np.random.default_rng(3).standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(np.tanh(drawn_ND @ mixing_DD) * 2, dtype=np.float32)


def random_codes(bench: Bench, rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """Codes (B, M), uint8, and partition ids (B,) on the device."""
    codes_BM = torch.randint(0, 256, (rows, steps), dtype=torch.uint8, device=bench.device)
    return codes_BM, torch.zeros(rows, dtype=torch.long, device=bench.device)
