"""A benchmark's report with made-up figures, for the tests of tables and plots."""

from rqmoe_store.evaluation.codec_results import (
    BenchmarkReport,
    CodecResult,
    GaussianBound,
    Recalls,
    ScalingRow,
    SpeedRow,
)


def codec_result(
    codec: str, code_bytes: int, mse: float | None, recall: float, **changes: object
) -> CodecResult:
    """A result whose other figures do not matter."""
    recalls = Recalls(one_recall_1=recall / 2, one_recall_10=0.8, one_recall_100=0.9, ten_recall_10=recall)
    values = {
        "codec": codec, "code_bytes": code_bytes, "settings": {"num_partitions": 0}, "training_seconds": 12.3,
        "epochs": 4.5, "mse": mse, "relative_to_rq": None if mse is None else mse / 0.4,
        "recall": recalls, "unseen_recall": recalls,
        "encode_microseconds": {1: 81234.5, 64: 321.4, 4096: 12.34},
        "decode_microseconds": {1: 456.7, 64: 7.891, 4096: 0.1234},
        "artifact_bytes": 2_500_000, "peak_memory_bytes": 34_500_000, "peak_cuda_bytes": None,
    }  # fmt: skip
    return CodecResult(**{**values, **changes})


def small_report() -> BenchmarkReport:
    """Two sizes of `rq` and `opq`, a loaded codec with a long name at one of them, speed and scaling."""
    speed = SpeedRow(
        codec="rq", code_bytes=8, work="decode", form="step by step", vectors=4096, microseconds=1.5,
        times_default=7.25, mse=0.4, multiply_adds=1_234_567, matmul_share=0.6789,
    )  # fmt: skip
    return BenchmarkReport(
        settings={},
        machine={},
        results=[
            codec_result("rq", 8, 0.4, 0.5),
            codec_result("opq", 8, 0.5, 0.4, epochs=None),
            codec_result("rq", 16, 0.2, 0.7),
            codec_result("opq", 16, 0.25, 0.6, epochs=None),
            codec_result("a/long/path/to/the/folder/of/a/[codec]", 16, 0.15, 0.75, training_seconds=None),
        ],
        bounds=[
            GaussianBound(code_bytes=8, mse=0.31, relative_to_rq=0.775),
            GaussianBound(code_bytes=16, mse=0.11, relative_to_rq=0.55),
        ],
        speed=[speed],
        scaling=[
            ScalingRow(
                codec="rq",
                code_bytes=8,
                vectors=1_000_000,
                vectors_per_second=4321.0,
                memory_growth_bytes=10**7,
            )
        ],
    )
