"""The tests of numerics hold on other processors, with other numbers of threads, and under load.

Libraries sum in an order of their own on every processor, and training rounds to bfloat16 on some. Each
test here runs all tests of numerics with their libraries held to other kernels than they would choose.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processor_kinds import Processor

pytest.importorskip("faiss")

TESTS = Path(__file__).parents[1]
NUMERIC = {
    "codecs": "additive base beam_search candidates correction deformation encoding layouts "
    "neighbors panels parallel precision quantizer vectors",
    "training": "checkpoint distributed initialize loop parts relevance sampler trainer",
    "search": "codec_tuning columns coverage diversity exhaustive hybrid query refine rerank "
    "reranker scan shortlist tensor_scan tuning",
    "evaluation": "codec_benchmark codec_measurement engine_peers faiss_peers lancedb_peers recall "
    "search_benchmark search_systems",
    "multivector": "fixed_dimensional max_sim",
    "store": "compress health statistics",
    "": "lifecycle",
}
"""The folders of tests, and of each the files that compute with floats."""
PROCESSORS = {
    "baseline": Processor(
        torch="baseline", numpy="baseline", others="baseline", precision="float32", threads=1
    ),
    "baseline, bfloat16": Processor(
        torch="baseline", numpy="baseline", others="baseline", precision="bfloat16", threads=2
    ),
    "avx2": Processor(torch="avx2", numpy="avx2", others="avx2", precision="float32", threads=4),
    "avx512": Processor(torch="avx512", numpy="avx512", others="avx512", precision="float32", threads=2),
    "avx512, bfloat16": Processor(
        torch="avx512", numpy="avx512", others="avx512", precision="bfloat16", threads=4
    ),
    "unlike libraries": Processor(
        torch="avx2", numpy="baseline", others="avx512", precision="bfloat16", threads=1
    ),
    "at hand, under load": Processor(threads=2, busy=2),
}
_BUSY = "import os\nos.nice(5)\nwhile True: pass"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, **environment}, cwd=TESTS.parent,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_numerics_hold_on_other_processors(name: str) -> None:
    processor = PROCESSORS[name]
    if processor.lacking():
        pytest.skip(f"this processor lacks {', '.join(processor.lacking())}")
    environment = processor.environment()
    said = json.loads(run(environment, "tests/processor_kinds.py").stdout.splitlines()[-1])
    expected = processor.expected()
    assert {key: said[key] for key in expected} == expected, "the libraries do not heed their limits"
    files = [
        str(TESTS / folder / f"test_{name}.py") for folder, names in NUMERIC.items() for name in names.split()
    ]
    with busy_processes(processor.busy):
        done = run(environment, *("-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"), *files)
    assert done.returncode == 0, f"{environment}\n{done.stdout[-20_000:]}"
