"""What holds for all tests."""

import os
import signal
import warnings
from collections.abc import Iterator

import pytest
from costly_examples import number_of_examples
from hypothesis import settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("untimed", deadline=None, max_examples=number_of_examples(100, part=50))
settings.load_profile("untimed")

# No test may reach for a model hub, nor behave differently where one could be reached.
os.environ["HF_HUB_OFFLINE"] = "1"
# Set before torch is imported: on tensors as small as the tests' a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _interpret_kernels() -> None:
    """Have Triton interpret kernels where there is no GPU to compile them for. It reads this when it is
    imported, which torch does once a codec is first prepared for it."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


_interpret_kernels()

# Shells start what runs in the background with Ctrl-C ignored, which tests send themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _compile_kernels() -> None:
    """Compile most kernels of codecs, which takes half a minute where no cache has them."""
    from small_codecs import trained_small, vectors

    with warnings.catch_warnings(action="ignore"):
        for kind in ("rqmoe", "turboquant"):
            codec = trained_small(vectors(100), kind=kind)
            codec.decode(codec.encode(vectors(10)))


def pytest_configure(config: pytest.Config) -> None:
    """Have kernels compiled once for all processes of pytest-xdist, and training take another number format
    than the hardware's: see processor_kinds.py."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        _compile_kernels()
    precision = os.environ.get("RQMOE_TESTS_PRECISION")
    if precision is not None:
        from rqmoe_store.codecs import prepared
        from rqmoe_store.training import loss

        for module in (loss, prepared):
            module.has_bfloat16_units = lambda device: {"bfloat16": True, "float32": False}[precision]


@pytest.fixture(scope="module")
def brief_timing() -> Iterator[None]:
    """Benchmarks repeat what they time as often as they must, not for as long as makes good figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rqmoe_store.evaluation.contenders._ENOUGH_SECONDS", 0.0)
        patch.setattr("rqmoe_store.evaluation.codec_measurement._CPU_SIZE", 256)
        yield
