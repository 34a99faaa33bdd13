"""Triton kernels in tests: on the GPU if there is one, else on the CPU by Triton's interpreter; and compiled
for an H100, which needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; it has wheels for Linux only")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compile_for_hopper(program: str, *arguments: str) -> str:
    """The output of a program that compiles kernels, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(Path(__file__).parent), *sys.path]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
