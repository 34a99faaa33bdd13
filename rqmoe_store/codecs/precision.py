"""Precision of reranking: decoding in bfloat16 where that is measured to be faster and as good as float32.

Hardware that multiplies bfloat16 matrices (AMX, AVX512-BF16, and GPUs that run the kernel) may take less time
to decode in bfloat16. The first time that a process reranks with a codec, it decodes some codes of the
codec's training vectors in both number formats. The decoded vectors decide whether bfloat16 may be used, the
time whether it is. The choice holds for the rest of the process, so a query that is repeated there finds the
same distances.

Shape legend: n codes, D dimension.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import ClassVar, get_args

import numpy as np

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import Precision, PrecisionChoice
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError

TRIAL_ROWS = 30
"""Codes that a trial decodes at a time: the shortlist of a query by default."""

_ROUNDS = 5
_SECONDS = 0.03
"""No round begins later than this."""

_MOST_NOISE = 1e-4
"""Most that rounding may add to a codec's squared error, as a share of it."""

_MOST_TIME = 0.75
"""Most time that bfloat16 may take, as a share of that of float32. Measured times vary by a tenth or two: a
smaller gain would be found in one process and not in the next."""


@dataclasses.dataclass(frozen=True)
class PrecisionTrial:
    """What decoding the same codes in both number formats showed."""

    noise: float
    """Mean squared distance between the vectors of both, as a share of the codec's squared error."""
    is_repeatable: bool
    """Whether bfloat16 gives a code the same vector in batches of any size, and wherever it is there."""
    float32_seconds: float
    """CPU time, of the fastest run."""
    bfloat16_seconds: float

    @property
    def precision(self) -> Precision:
        """The number format to rerank in."""
        is_as_good = self.is_repeatable and self.noise <= _MOST_NOISE
        is_faster = self.bfloat16_seconds <= _MOST_TIME * self.float32_seconds
        return "bfloat16" if is_as_good and is_faster else "float32"


def try_precisions(
    decode: Callable[[Codes, Precision], Float32Array],
    codes: Codes,
    batched_nD: Float32Array,
    error: float,
    clock: Callable[[], float] = time.thread_time,
) -> PrecisionTrial:
    """Decode codes in both number formats, in turn.

    Args:
        decode: decodes codes in a number format, in the calling thread.
        codes: codes of vectors such as the codec is for.
        batched_nD: what a large batch in bfloat16 decodes them to.
        error: the codec's mean squared error.
        clock: seconds that the thread has computed, so that other work on its core does not count.
    """
    exact_nD, rounded_nD = decode(codes, "float32"), decode(codes, "bfloat16")  # also loads what both need
    reversed_nD = decode(codes[::-1], "bfloat16")
    is_repeatable = np.array_equal(batched_nD, rounded_nD) and np.array_equal(reversed_nD[::-1], rounded_nD)
    squares_n = np.square(rounded_nD.astype(np.float64) - exact_nD).sum(axis=1)
    seconds: dict[Precision, float] = {"float32": math.inf, "bfloat16": math.inf}
    started = clock()
    for _ in range(_ROUNDS):
        for precision in seconds:
            began = clock()
            decode(codes, precision)
            seconds[precision] = min(seconds[precision], clock() - began)
        if clock() - started > _SECONDS:
            break
    noise = float(squares_n.mean()) / error if error > 0 else math.inf
    return PrecisionTrial(noise, is_repeatable, seconds["float32"], seconds["bfloat16"])


class _Choices:
    """What this process reranks in."""

    setting: PrecisionChoice = "auto"
    measured: ClassVar[dict[tuple[str, str], Precision]] = {}
    """By fingerprint and device."""


def set_rerank_precision(precision: PrecisionChoice) -> None:
    """Set the number format in which all searches of the process decode what they rerank.

    It concerns `search().rerank("decoded")`, the default in tables without refine codes, and
    `DecodedReranker`. `Codec.decode`, exports, and vectors in results are float32 in any case.

    Args:
        precision: "float32"; "bfloat16", also where it is slower; or "auto", the default: bfloat16 on CPUs
            with units for it (AMX, AVX512-BF16) if a trial of less than 100 ms, at the first rerank with a
            codec, finds it faster and its vectors equal to within a ten-thousandth of the codec's own squared
            error. Set another one where searches must give the same distances on different machines.

    Raises:
        InvalidInputError: another value.
    """
    if not isinstance(precision, str) or precision not in get_args(PrecisionChoice):
        raise InvalidInputError(f"Got precision={precision!r}; expected 'auto', 'float32' or 'bfloat16'.")
    _Choices.setting = precision


def rerank_precision(
    fingerprint: str, device: str, measure: Callable[[], PrecisionTrial | None]
) -> Precision:
    """The number format to rerank in: the one that is set, else the measured one.

    Args:
        fingerprint: that of the codec.
        device: the name of its device.
        measure: makes the trial; None without anything to gain. It is called at most once in a process for
            each codec and device, unless threads ask at the same time.
    """
    if _Choices.setting != "auto":
        return _Choices.setting
    key = fingerprint, device
    if key not in _Choices.measured:
        trial = measure()
        # Of threads that measured at the same time, the first one decides for all.
        _Choices.measured.setdefault(key, "float32" if trial is None else trial.precision)
    return _Choices.measured[key]
