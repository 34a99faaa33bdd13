"""Compiles a Triton kernel for an H100 or H200, ahead of time."""

import dataclasses
import os
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the machine code of a kernel needs."""

    registers: int
    stack: int
    """Bytes of a thread in local memory."""
    shared: int
    """Bytes of a program in shared memory."""
    code: str
    """The instructions."""

    @property
    def spills(self) -> int:
        """Instructions that move registers to local memory and back."""
        return len(re.findall(r"\b(?:LDL|STL)\b", self.code))


def compile_kernel(kernel, types: dict[str, str], constants: dict[str, object], **options: int) -> Compiled:
    """Compile a kernel for arguments of these types; pointers are aligned as torch aligns them."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "kernel.cubin")
        Path(file).write_bytes(compiled.asm["cubin"])
        usage, code = (
            subprocess.run([_TOOL, option, file], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return Compiled(int(registers), int(stack), compiled.metadata.shared, code)
