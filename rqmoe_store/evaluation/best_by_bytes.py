"""Best codec at each number of bytes per vector: ours, the best of others, and those that find more."""

from collections.abc import Iterable, Sequence

from rqmoe_store.evaluation.codec_results import BestAtSize, CodecResult, FoundBy
from rqmoe_store.evaluation.peer_names import is_peer

_NAMED = 3
"""Most peers that a verdict names."""


def best_by_bytes(results: Iterable[CodecResult], total_bytes: Sequence[int]) -> list[BestAtSize]:
    """Compare at every size, smallest first, what was measured at as many bytes or fewer.

    Args:
        results: of codecs of ours and of other libraries, as long as they were measured on the same vectors.
        total_bytes: the sizes.
    """
    return best_of_found([_found(result) for result in results], total_bytes)


def best_of_found(found: Sequence[FoundBy], total_bytes: Sequence[int]) -> list[BestAtSize]:
    """Compare as `best_by_bytes` does, what is known to have been found by codecs."""
    ours = [each for each in found if not is_peer(each.codec)]
    peers = [each for each in found if is_peer(each.codec)]
    return [_best_at(size, ours, peers) for size in sorted(set(total_bytes))]


def verdict(row: BestAtSize) -> str:
    """Whether ours is the best, and if it is not, what finds more, and by how much."""
    if row.ours is None:
        return "not measured"
    if row.best_peer is None:
        return "yes, nobody else has so few"
    if not row.better_peers:
        return "yes"
    leads = [_lead(row.ours, peer) for peer in row.better_peers[:_NAMED]]
    further = len(row.better_peers) - len(leads)
    return "NO: " + "; ".join([*leads, *([f"and {further} more"] if further else [])])


def _found(result: CodecResult) -> FoundBy:
    return FoundBy(
        codec=result.codec,
        code_bytes=result.code_bytes,
        recall=result.recall.ten_recall_10,
        unseen_recall=result.unseen_recall.ten_recall_10,
    )


def _best_at(total_bytes: int, ours: Sequence[FoundBy], peers: Sequence[FoundBy]) -> BestAtSize:
    chosen, best_peer = _best_of(ours, total_bytes), _best_of(peers, total_bytes)
    better = [
        best
        for name in dict.fromkeys(each.codec for each in peers)
        if chosen is not None
        and (best := _best_of([each for each in peers if each.codec == name], total_bytes)) is not None
        and (best.recall > chosen.recall or best.unseen_recall > chosen.unseen_recall)
    ]
    better.sort(key=lambda each: -each.recall)
    return BestAtSize(total_bytes=total_bytes, ours=chosen, best_peer=best_peer, better_peers=better)


def _best_of(found: Sequence[FoundBy], total_bytes: int) -> FoundBy | None:
    """What finds most of all within so many bytes."""
    return max((each for each in found if each.code_bytes <= total_bytes), key=_quality, default=None)


def _quality(found: FoundBy) -> tuple[float, float]:
    return found.recall, found.unseen_recall


def _lead(ours: FoundBy, peer: FoundBy) -> str:
    """By how much a peer finds more, of all vectors and of unseen ones."""
    leads = [
        f"{lead:+.3f}{of}"
        for lead, of in (
            (peer.recall - ours.recall, ""),
            (peer.unseen_recall - ours.unseen_recall, " unseen"),
        )
        if lead > 0
    ]
    return f"{peer.codec} {', '.join(leads)}"
