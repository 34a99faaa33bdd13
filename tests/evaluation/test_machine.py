"""The machine that figures are from, its memory, and libraries that are missing."""

import json
import sys
import time

import numpy as np
import pytest
import torch
from other_processes import run_script

from rqmoe_store import __version__
from rqmoe_store.codecs.parallel import num_threads
from rqmoe_store.errors import RQMoEError
from rqmoe_store.evaluation.machine import (
    MemoryOverTime,
    PeakMemory,
    describe_machine,
    require_bench,
    resident_bytes,
)


def test_what_is_described() -> None:
    machine = json.loads(json.dumps(describe_machine(torch.device("cpu"))))
    assert machine["versions"]["rqmoe-store"] == __version__
    assert machine["versions"]["numpy"] == np.__version__
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["threads"] == num_threads()
    assert machine["cpu"] and machine["logical_cores"] >= 1
    assert machine["device"] == "cpu" and machine["gpu"] is None
    assert 0 <= machine["load_average"] < float("inf")


def test_installed_modules_pass() -> None:
    require_bench("json", "numpy")
    require_bench()


def test_missing_modules_are_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(RQMoEError, match=r'installed: psutil, no_such_module\. .*"rqmoe-store\[bench\]"'):
        require_bench("json", "psutil", "no_such_module")


COMMAND = """
import contextlib, io, sys
sys.modules["psutil"] = None
from rqmoe_store.cli import app
with contextlib.redirect_stderr(io.StringIO()) as said:
    try:
        app(sys.argv[1:])
    except SystemExit as end:
        print(end.code, said.getvalue())
"""


def test_a_command_names_the_extra_that_is_missing() -> None:
    """In a process of its own, which has not imported anything of the extra."""
    said = run_script(COMMAND, "bench", "codec", "--vectors", "a.npy", "--queries", "b.npy")
    assert said.startswith("1 ") and "Not installed: psutil." in said, said
    assert "Traceback" not in said


CPU = torch.device("cpu")

MB = 2**20


def test_what_was_held_counts_even_when_it_is_freed() -> None:
    before = resident_bytes()
    with PeakMemory(CPU) as memory:
        held = np.ones(64 * MB, dtype=np.uint8)
        memory.sample()
        del held
    assert 60 * MB < memory.growth_bytes < 100 * MB
    assert memory.cuda_growth_bytes is None
    assert resident_bytes() - before < 30 * MB


def test_the_thread_looks_by_itself() -> None:
    with PeakMemory(CPU) as memory:
        held = np.ones(64 * MB, dtype=np.uint8)
        for _ in range(200):
            held += 1
        del held
    assert memory.growth_bytes > 60 * MB


def test_what_was_held_before_does_not_count() -> None:
    held = np.ones(64 * MB, dtype=np.uint8)
    with PeakMemory(CPU) as memory:
        held += 1
    assert memory.growth_bytes < 20 * MB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells mapped files apart")
def test_a_mapped_file_is_no_memory(tmp_path) -> None:
    np.save(tmp_path / "rows.npy", np.ones(64 * MB, dtype=np.uint8))
    with PeakMemory(CPU) as memory:
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r", allow_pickle=False)
        assert int(mapped.sum()) == 64 * MB
        memory.sample()
    assert memory.growth_bytes < 30 * MB


def test_growth_over_time() -> None:
    def most() -> float:
        return max((growth for _, growth in memory.by_second()), default=0)

    with MemoryOverTime() as memory:
        while not memory.by_second():  # however long it is until the thread gets to look
            time.sleep(0.01)
        assert most() < 30 * MB
        held = np.ones(64 * MB, dtype=np.uint8)
        while most() < 60 * MB:
            time.sleep(0.01)
        del held
    assert 60 * MB < max(memory.peaks(10)) < 100 * MB
    assert most() == max(memory.peaks(10)) == max(memory.peaks(1))
