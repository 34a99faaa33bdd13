"""Free embeddings: of how many documents vectors of few dimensions can tell all pairs apart, encoded or not.

Vectors of documents and of queries, one query for every pair of documents, are optimized by gradient so that
the two documents of a query are its two nearest. No text is embedded, so a model is not what limits them.

Shape suffixes: N documents, Q queries (pairs of documents), D dimension, V training vectors.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.trainer import train

_TEMPERATURE = 0.1
_LEARNING_RATE = 0.01
_CHECK_EVERY = 250
_LEAST_GAIN = 1e-3
"""Vectors are optimized until as many steps lower the loss by a smaller share."""

_TRIVIAL = 2
"""So many documents have one pair."""

Solution = tuple[Float32Array, Float32Array]
"""Vectors of unit length of documents (N, D) and of queries (Q, D)."""

Solver = Callable[[int], Solution | None]
"""Number of documents -> vectors that tell all their pairs apart; None if none were found."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeSettings:
    """What to optimize and to encode."""

    dims: tuple[int, ...] = (3, 4, 5, 6)
    """Dimensions, ascending."""
    code_bytes: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Sizes of codes."""
    most_documents: int = 50
    """Where the search for the number of documents ends in any case."""
    steps: int = 10_000
    """Most steps of gradient."""
    attempts: int = 3
    """Random starts, after which documents count as too many."""
    rotations: int = 16
    """Times that every solution is turned at random before it is encoded, as codebooks have directions."""
    training_vectors: int = 20_480
    """Random vectors of unit length that codecs are fitted to."""
    codebook_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.dims or min(self.dims) < 2 or list(self.dims) != sorted(set(self.dims)):
            raise InvalidInputError(f"Got dimensions {list(self.dims)}; expected some from 2, ascending.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeResult:
    """How many documents' pairs a dimension can tell apart."""

    dim: int
    documents: int
    """The most documents for which all pairs are told apart by the vectors themselves."""
    encoded_documents: dict[int, int]
    """Bytes -> the most documents of which codes tell all pairs apart, in at least half of the rotations."""
    encoded_share: dict[int, float]
    """Bytes -> share of the pairs of `documents` documents that codes tell apart."""


def benchmark_free(
    settings: FreeSettings, on_done: Callable[[FreeResult], None] = lambda result: None
) -> list[FreeResult]:
    """Find the number of documents for every dimension.

    It is searched for by halving, as if fewer documents were always easier. Codecs, which are plain RQ under
    cosine, are fitted to random directions: fitted to so few documents, they would reproduce them exactly.

    Args:
        settings: what to optimize and to encode.
        on_done: called with the result of every dimension.
    """
    results: list[FreeResult] = []
    for dim in settings.dims:
        first = results[-1].documents if results else _TRIVIAL
        results.append(_measure(dim, first, settings))
        on_done(results[-1])
    return results


def _measure(dim: int, first: int, settings: FreeSettings) -> FreeResult:
    solved = functools.cache(lambda count: solve(count, dim, settings))
    most = _most_documents(lambda count: solved(count) is not None, settings.most_documents, first)
    encoded_documents, encoded_share = {}, {}
    for num_bytes in settings.code_bytes:
        codec = _codec(dim, num_bytes, settings)
        shares = functools.cache(functools.partial(_shares, solved=solved, codec=codec, settings=settings))
        encoded_share[num_bytes] = float(shares(most).mean())
        kept = functools.partial(_keeps_all, shares)
        encoded_documents[num_bytes] = most if kept(most) else _most_documents(kept, most)
    return FreeResult(
        dim=dim, documents=most, encoded_documents=encoded_documents, encoded_share=encoded_share
    )


def _keeps_all(shares: Callable[[int], npt.NDArray[np.float64]], count: int) -> bool:
    """Whether codes tell all pairs apart in at least half of the rotations."""
    return bool(np.mean(shares(count) == 1) >= 0.5)


def _most_documents(passes: Callable[[int], bool], limit: int, first: int = _TRIVIAL) -> int:
    """The largest number up to a limit that passes, where `first` and all below do."""
    passed, step = first, 1
    while passed + step <= limit and passes(passed + step):
        passed, step = passed + step, 2 * step
    failed = min(passed + step, limit + 1)
    while failed - passed > 1:
        middle = (passed + failed) // 2
        passed, failed = (middle, failed) if passes(middle) else (passed, middle)
    return passed


def _shares(count: int, *, solved: Solver, codec: Codec, settings: FreeSettings) -> npt.NDArray[np.float64]:
    """Of every rotation, the share of pairs that codes of the documents tell apart."""
    found = next(found for more in itertools.count(count) if (found := solved(more)) is not None)
    documents_ND, queries_QD = found
    # Some of the documents of a solution are one of fewer, should none have been found for these.
    within_Q = (pairs_of(len(documents_ND)) < count).all(axis=1)
    turned = _encoded(documents_ND[:count], queries_QD[within_Q], codec, settings)
    return np.array([told_apart(*each) for each in turned])


def pairs_of(count: int) -> npt.NDArray[np.int64]:
    """All pairs (Q, 2) of so many documents."""
    return np.array(list(itertools.combinations(range(count), 2)), dtype=np.int64)


def told_apart(documents_ND: Float32Array, queries_QD: Float32Array) -> float:
    """The share of queries whose own two documents have the two highest scores."""
    pairs_Q2 = pairs_of(len(documents_ND))
    scores_QN = queries_QD @ documents_ND.T
    own_Q = np.take_along_axis(scores_QN, pairs_Q2, axis=1).min(axis=1)
    np.put_along_axis(scores_QN, pairs_Q2, -np.inf, axis=1)
    return float((own_Q > scores_QN.max(axis=1)).mean())


def solve(count: int, dim: int, settings: FreeSettings) -> Solution | None:
    """Optimize vectors of documents and of the query of every pair; None if not all pairs are told apart."""
    for attempt in range(settings.attempts):
        found = _optimize(count, dim, settings, torch.Generator().manual_seed(settings.seed + attempt))
        if told_apart(*found) == 1:
            return found
    return None


def _optimize(count: int, dim: int, settings: FreeSettings, random: torch.Generator) -> Solution:
    pairs_Q2 = torch.from_numpy(pairs_of(count))
    documents_ND = torch.randn(count, dim, generator=random).requires_grad_()
    queries_QD = torch.randn(len(pairs_Q2), dim, generator=random).requires_grad_()
    optimizer = torch.optim.Adam([documents_ND, queries_QD], lr=_LEARNING_RATE)
    before = float("inf")
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad()
        loss = _loss(documents_ND, queries_QD, pairs_Q2)
        loss.backward()
        optimizer.step()
        if step % _CHECK_EVERY == 0:
            if before - loss.item() < _LEAST_GAIN * before:
                break
            before = loss.item()
    return _normalized(documents_ND), _normalized(queries_QD)


def _loss(documents_ND: Tensor, queries_QD: Tensor, pairs_Q2: Tensor) -> Tensor:
    """InfoNCE of cosines, whose positives are both documents of a query."""
    normalize = torch.nn.functional.normalize
    scores_QN = normalize(queries_QD, dim=1) @ normalize(documents_ND, dim=1).T / _TEMPERATURE
    return scores_QN.logsumexp(dim=1).mean() - scores_QN.gather(1, pairs_Q2).mean()


def _normalized(vectors: Tensor) -> Float32Array:
    found: Any = torch.nn.functional.normalize(vectors.detach(), dim=1).numpy()
    return np.asarray(found, dtype=np.float32)


def _codec(dim: int, num_bytes: int, settings: FreeSettings) -> Codec:
    random = np.random.default_rng(settings.seed)
    vectors_VD = random.normal(size=(settings.training_vectors, dim)).astype(np.float32)
    config = CodecConfig(
        kind="rq",
        code_bytes=num_bytes,
        metric="cosine",
        num_partitions=0,
        codebook_size=settings.codebook_size,
    )
    return train(vectors_VD, config=config, training=TrainConfig(seed=settings.seed, progress=False))


def _encoded(
    documents_ND: Float32Array, queries_QD: Float32Array, codec: Codec, settings: FreeSettings
) -> Iterator[tuple[Float32Array, Float32Array]]:
    """The vectors turned at random, documents encoded and decoded, all of unit length."""
    random = np.random.default_rng(settings.seed)
    for _ in range(settings.rotations):
        rotation_DD = np.linalg.qr(random.normal(size=(codec.dim, codec.dim)))[0].astype(np.float32)
        decoded_ND = codec.decode(codec.encode(documents_ND @ rotation_DD))
        yield decoded_ND / np.linalg.norm(decoded_ND, axis=1, keepdims=True), queries_QD @ rotation_DD
