"""Kinds of processors that this one can pass for, by limits that its libraries take from the environment.

Every library with kernels of several instruction sets chooses among them when it is loaded: torch, with MKL
and oneDNN below it; numpy, with OpenBLAS; FAISS; Arrow; and numba, which compiles for what it is told.

Run as a program, this prints what the libraries say of themselves, as JSON.
"""

import ctypes
import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

Level = Literal["baseline", "avx2", "avx512"]

PRECISION_VARIABLE = "RQMOE_TESTS_PRECISION"
"""What training in precision="auto" takes in tests, whatever the hardware; conftest.py sees to it."""

_NEEDED: dict[Level, list[str]] = {
    "baseline": ["SSE42"],
    "avx2": ["AVX2", "FMA3"],
    "avx512": ["AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processor:
    """What tests are to run on. None leaves a choice to the processor at hand."""

    torch: Level | None = None
    numpy: Level | None = None
    others: Level | None = None
    """Of FAISS, numba and Arrow."""
    precision: Literal["float32", "bfloat16"] | None = None
    threads: int
    busy: int = 0
    """Processes beside the tests that keep cores busy."""

    def lacking(self) -> list[str]:
        """Instruction sets that this would need, and the processor at hand has not."""
        levels = {level for level in (self.torch, self.numpy, self.others) if level is not None}
        return sorted({name for level in levels for name in _NEEDED[level] if not __cpu_features__.get(name)})

    def environment(self) -> dict[str, str]:
        """The variables that have libraries take the processor at hand for this one."""
        # MKL would have torch use no more threads than there are cores.
        variables = {"OMP_NUM_THREADS": str(self.threads), "MKL_DYNAMIC": "FALSE"}
        if self.precision is not None:
            variables[PRECISION_VARIABLE] = self.precision
        if self.torch is not None:
            variables |= _TORCH[self.torch]
        if self.numpy is not None:
            disabled = [name for name in _present() if name not in _kept(self.numpy)]
            variables["NPY_DISABLE_CPU_FEATURES"] = " ".join(disabled)
            variables["OPENBLAS_CORETYPE"] = _OPENBLAS[self.numpy]
        if self.others is not None:
            variables |= _OTHERS[self.others]
        return variables

    def expected(self) -> dict[str, Any]:
        """What the libraries then say of themselves."""
        said: dict[str, Any] = {"threads": self.threads}
        if self.torch is not None:
            said["torch"] = _TORCH[self.torch]["ATEN_CPU_CAPABILITY"].upper()
        if self.numpy is not None:
            said |= {"numpy": _kept(self.numpy), "openblas": _OPENBLAS[self.numpy]}
        if self.others is not None:
            names = _OTHERS[self.others]
            said |= {
                "faiss": names["FAISS_SIMD_LEVEL"],
                "numba": names["NUMBA_CPU_NAME"],
                "arrow": names["ARROW_USER_SIMD_LEVEL"].lower(),
            }
        return said


def _present() -> list[str]:
    """Names of the instruction sets that numpy has kernels of and the processor at hand has."""
    return [name for name in __cpu_dispatch__ if __cpu_features__[name]]


def _kept(level: Level) -> list[str]:
    """Those of them that a processor of this level has."""
    above = {"baseline": "", "avx2": ("AVX512", "X86_V4"), "avx512": ()}[level]
    return [name for name in _present() if not name.startswith(above)]


_TORCH: dict[Level, dict[str, str]] = {
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "MKL_CBWR": "AVX512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}
_OPENBLAS: dict[Level, str] = {"baseline": "Nehalem", "avx2": "Haswell", "avx512": "SkylakeX"}


def _others(simd_level: str, cpu_name: str) -> dict[str, str]:
    # No features: those of the processor of that name, instead of those of the one at hand.
    numba = {"NUMBA_CPU_NAME": cpu_name, "NUMBA_CPU_FEATURES": ""}
    return {"FAISS_SIMD_LEVEL": simd_level, "ARROW_USER_SIMD_LEVEL": simd_level, **numba}


_OTHERS: dict[Level, dict[str, str]] = {
    "baseline": _others("NONE", "generic"),
    "avx2": _others("AVX2", "haswell"),
    "avx512": _others("AVX512", "skylake-avx512"),
}


def _said_by_libraries() -> dict[str, Any]:
    import faiss
    import pyarrow
    import torch
    from numba.core.registry import cpu_target

    (openblas,) = (Path(np.__file__).parents[1] / "numpy.libs").glob("*openblas*")
    core_of_openblas = ctypes.CDLL(str(openblas)).scipy_openblas_get_corename64_
    core_of_openblas.restype = ctypes.c_char_p
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.backends.cpu.get_cpu_capability(),
        "numpy": _present(),
        "openblas": core_of_openblas().decode(),
        "faiss": faiss.SIMDConfig.get_level_name(),
        "numba": cpu_target.target_context.codegen().magic_tuple()[1],
        "arrow": pyarrow.runtime_info().simd_level,
    }


if __name__ == "__main__":
    print(json.dumps(_said_by_libraries()))
