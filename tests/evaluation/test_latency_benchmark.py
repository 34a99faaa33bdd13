"""The benchmark of latency: every system in every part, and nothing left behind."""

import importlib.util

import numpy as np
import psutil
import pytest
from small_searches import clustered

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation import latency_benchmark
from rqmoe_store.evaluation.latency_benchmark import (
    IVF_RQ,
    IVF_RQ_REFINED,
    OURS,
    OURS_CACHED,
    TURBOVEC,
    LatencySettings,
    benchmark_latency,
    print_latency_report,
)
from rqmoe_store.training.trainer import train

VECTORS = clustered(600)
BRIEF = LatencySettings(timed_queries=3, rounds=2, busy_processes=1)


def codec_of(metric: str) -> Codec:
    config = CodecConfig(kind="rq", code_bytes=4, refine_bytes=8, codebook_size=32, metric=metric)
    return train(VECTORS, config=config, training=TrainConfig(epochs=0, progress=False, device="cpu"))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_every_system_is_measured_in_every_part(capsys) -> None:
    parts = []
    vectors = unit(VECTORS)
    report = benchmark_latency(vectors, vectors[:80], codec_of("cosine"), BRIEF, parts.append)
    has_turbovec = importlib.util.find_spec("turbovec") is not None
    systems = [OURS, OURS_CACHED, IVF_RQ, IVF_RQ_REFINED, *([TURBOVEC] if has_turbovec else [])]
    found = [(each.part, each.system) for each in report.results]
    assert found == [(part, system) for part in parts[1:] for system in systems]
    assert len(parts) == 6
    for each in report.results:
        assert 0 < each.recall <= 1 and each.ratio > 0
        assert (each.p50_ms is None) == (each.queries_per_second is not None)
        assert each.system != OURS or each.ratio == 1
    assert all("while True" not in " ".join(each.cmdline()) for each in psutil.Process().children())
    print_latency_report(report)
    printed = capsys.readouterr().out
    assert all(part.capitalize() in printed for part in parts[1:])


def test_a_system_that_is_not_installed_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(latency_benchmark.importlib.util, "find_spec", lambda name: None)
    vectors = unit(VECTORS)
    brief = LatencySettings(
        timed_queries=1, rounds=1, busy_processes=0, nprobes=1, shortlist=10, peer_nprobes=1
    )
    report = benchmark_latency(vectors, vectors[:64], codec_of("cosine"), brief)
    assert report.missing == (TURBOVEC,)
    print_latency_report(report)
    assert "pip install turbovec" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["nprobes", "shortlist", "peer_nprobes", "timed_queries", "rounds"])
def test_settings_out_of_range_are_refused(setting) -> None:
    with pytest.raises(InvalidInputError, match=f"{setting}=0"):
        LatencySettings(**{setting: 0})


def test_too_few_queries_and_other_metrics_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="63 queries"):
        benchmark_latency(VECTORS, VECTORS[:63], codec_of("l2"), BRIEF)
    with pytest.raises(InvalidInputError, match="'dot'"):
        benchmark_latency(VECTORS, VECTORS[:64], codec_of("dot"), BRIEF)
