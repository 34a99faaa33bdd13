"""LLVM's vector types, for loops that compilers do not vectorize well by themselves.

LLVM translates operations of these types to the instructions of the processor, whatever vectors it has.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]


def load_vector(builder: Any, pointer: Any, element: Any, width: int) -> Any:
    """`width` consecutive elements from an address, which need not be aligned."""
    vector = ir.VectorType(element, width)
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)


def store_vector(builder: Any, value: Any, pointer: Any) -> None:
    """Write a vector to an address, which need not be aligned."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)


def repeat(builder: Any, value: Any, width: int) -> Any:
    """A vector of the same value `width` times."""
    vector, places = ir.VectorType(value.type, width), ir.VectorType(ir.IntType(32), width)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(places, [0] * width))
