"""The benchmark of a GPU, tried on the CPU: parts in processes of their own, and the table."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from simulated_cuda import simulated_cuda

from rqmoe_store.codecs.graphs import HostRecording
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation import gpu_benchmark, gpu_measurement
from rqmoe_store.evaluation.gpu_benchmark import GPUSettings, benchmark_gpu, main
from rqmoe_store.evaluation.gpu_measurement import PARTS
from rqmoe_store.evaluation.gpu_workbench import TINY, Bench


def tried(*parts: str, minutes: float = 10, vectors: str | None = None) -> tuple[dict, list[str]]:
    seen: list[str] = []
    settings = GPUSettings(minutes=minutes, parts=parts, device="cpu", vectors=vectors, tiny=True)
    return benchmark_gpu(settings, lambda name, value: seen.append(name)), seen


def test_parts_are_measured_in_turn_and_one_that_fails_costs_that_one_only(tmp_path) -> None:
    parts = ("machine", "encode")
    figures, seen = tried("train", *parts, vectors=str(tmp_path / "none.npy"))
    failed = {"train": "failed: its process ended with code 1"}
    assert figures["parts"] == failed | dict.fromkeys(parts, "done")
    assert figures["machine.device"] == "cpu"
    errors = {name: value for name, value in figures.items() if isinstance(value, dict) and "error" in value}
    assert errors.keys() <= {"machine.triton"}  # not installed
    assert figures["encode.16.300.us"] > 0 and figures["encode.16.1.same_codes"]
    assert seen.index("machine ended") < seen.index("encode.16.300.us") < seen.index("encode ended")


def test_parts_run_on_a_cpu() -> None:
    """In this process, as each of its own takes seconds to start."""
    sizes, figures = dataclasses.replace(TINY, rows=(2_000,), checked_rows=1_500), dict[str, Any]()
    for part in ("scan", "decode", "shortlist", "exhaustive"):
        PARTS[part](Bench(torch.device("cpu"), sizes, figures.__setitem__, None, 1))
    assert not [name for name, value in figures.items() if isinstance(value, dict) and "error" in value]
    assert figures["exhaustive.16.largest_deviation"] < 1e-9
    for metric in ("l2", "cosine", "dot"):
        assert figures[f"scan.{metric}.equals_cpu"]
        assert figures[f"scan.{metric}.refined.equals_cpu"] == {"rows": True, "largest_deviation": 0.0}
    assert figures["scan.2000.refined.queries_per_s"] > 0
    assert figures["scan.2000.refined.1000.queries_per_s"] > 0


def test_the_nearest_of_a_shortlist_are_found_as_searches_find_them(monkeypatch) -> None:
    monkeypatch.setattr(gpu_measurement, "SHORTLIST", 50)
    figures: dict = {}
    with simulated_cuda():
        cuda = torch.device("cuda:0")
        measure = functools.partial(Bench, cuda, TINY, figures.__setitem__, None, 1)
        PARTS["shortlist"](measure())
        assert figures["shortlist.16.us"] > 0 and figures["shortlist.16.float32.us"] > 0
        monkeypatch.setattr(HostRecording, "wait", lambda recording: np.ones(64))
        PARTS["shortlist"](measure())
        assert "distances are wrong" in figures["shortlist.16.us"]["error"]


def test_parts_run_on_a_gpu(monkeypatch) -> None:
    """On a simulated one, so that nothing trivial fails where time on a real one is short."""

    def run_once(bench: Bench, work: Callable[[], object], **limits: object) -> float:
        work()
        return 1.0

    monkeypatch.setattr(Bench, "seconds", run_once)
    sizes, figures = dataclasses.replace(TINY, rows=(2_000,), checked_rows=1_500), dict[str, Any]()
    with simulated_cuda():
        for part in ("scan", "decode", "exhaustive", "encode"):
            PARTS[part](Bench(torch.device("cuda:0"), sizes, figures.__setitem__, None, 1))
    errors = {name: value for name, value in figures.items() if isinstance(value, dict) and "error" in value}
    assert not errors
    for metric in ("l2", "cosine", "dot"):
        assert all(figures[f"scan.{metric}.equals_cpu"].values())
        assert figures[f"scan.{metric}.refined.equals_cpu"]["rows"]
    assert figures["exhaustive.16.largest_deviation"] < 1e-9 and figures["encode.16.1.same_codes"]


def test_parts_without_time_are_stopped_or_left_out(monkeypatch) -> None:
    monkeypatch.setattr(gpu_benchmark, "_START_SECONDS", 0)
    monkeypatch.setattr(gpu_benchmark, "SECONDS", {"scan": 0.0, "machine": 0.0})
    figures, _ = tried("scan", "machine")
    assert set(figures["parts"].values()) == {"stopped: it took longer than it may"}
    assert tried("scan", minutes=0.1)[0]["parts"] == {"scan": "left out: no time was left"}


def test_all_parts_have_a_limit() -> None:
    assert list(gpu_benchmark.SECONDS) == list(PARTS)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\['scans'\]; expected some of machine, scan"):
        GPUSettings(parts=("scans",))
    with pytest.raises(InvalidInputError, match="more than 0"):
        GPUSettings(minutes=0)


def test_the_table_has_what_was_measured(tmp_path, capsys) -> None:
    figures = {
        "machine.device": "a GPU",
        "machine.torch": "2.9",
        "decode.128.kernel.us": 0.0314,
        "decode.128.float32.us": 0.2,
        "encode.128.65536.us": {"error": "OutOfMemoryError"},
        "train": {"times_rq": 0.81, "seconds": 75.3, "steps_per_s": 120.0, "epochs": 2},
    }
    (tmp_path / "gpu.json").write_text(json.dumps(figures))
    main(["--table", str(tmp_path / "gpu.json")])
    table = capsys.readouterr().out
    assert table.startswith("On a GPU, torch 2.9.\n")
    assert "| 0.0314 | float32 0.2 |" in table
    assert "beam 3; us a vector | at most 3 | failed |" in table
    assert "0.81 after 75 s, 120.0 steps/s" in table
    assert "not measured yet" in table
