"""What may happen to bytes and values at rest."""

import numpy as np

HOSTILE = [
    *(None, True, "", "x", "../x", "\ud800", "' OR 1=1 --", [], [1], [[]], {}, {"a": 1}),
    *(-1, 0, 1, 2, 5000, 2**24, 2**31, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf")),
]
"""What a value may have become; some of it happens to be what it was, or as good."""


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Bytes flipped, cut off, cut out, put in, repeated or zeroed."""
    start, stop = sorted(random.integers(0, len(content) + 1, 2))
    kind = random.integers(7)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[start:]
    if kind == 2:
        return content[:start] + content[stop:]
    if kind == 3:
        return content[:start] + random.bytes(int(random.integers(1, 40))) + content[start:]
    if kind == 4:
        return content[:stop] + content[start:stop] + content[stop:]
    if kind == 5:
        return content[:start] + bytes(stop - start) + content[stop:]
    changed = bytearray(content)
    for place in random.integers(0, len(content), random.integers(1, 9)):
        changed[place] ^= random.integers(1, 256)
    return bytes(changed)
