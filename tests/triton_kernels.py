"""Triton kernels in tests: on the GPU if there is one, else on the CPU by Triton's interpreter; and compiled
for an H100, which needs no GPU."""

import pytest
import torch
from other_processes import run_script

pytest.importorskip("triton", reason="Triton is not installed; it has wheels for Linux only")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_COMPILER = """
import os, sys
assert "triton" not in sys.modules, "which reads the environment when it is imported"
os.environ.pop("TRITON_INTERPRET", None)
"""


def compile_for_hopper(program: str, *arguments: str) -> str:
    """The output of a program that compiles kernels, in a process without the interpreter."""
    return run_script(_COMPILER + program, *arguments)
