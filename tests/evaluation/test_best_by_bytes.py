"""The comparison at each number of bytes: what counts as within it, and that it says where ours is behind."""

from small_reports import codec_result

from rqmoe_store.evaluation.best_by_bytes import best_by_bytes, verdict
from rqmoe_store.evaluation.codec_results import CodecResult, Recalls


def result(codec: str, code_bytes: int, recall: float, unseen: float | None = None) -> CodecResult:
    found = Recalls(
        one_recall_1=0.1,
        one_recall_10=0.2,
        one_recall_100=0.3,
        ten_recall_10=recall if unseen is None else unseen,
    )
    return codec_result(codec, code_bytes, 0.1, recall, unseen_recall=found)


def test_the_best_within_so_many_bytes_are_compared() -> None:
    results = [
        result("rq", 8, 0.4), result("rq-8+pq", 16, 0.6), result("pq", 16, 0.5), result("opq", 8, 0.3),
        result("opq", 16, 0.55), result("faiss-rabitq-1", 17, 0.9),
    ]  # fmt: skip
    rows = best_by_bytes(results, [24, 8, 16, 4])
    assert [row.total_bytes for row in rows] == [4, 8, 16, 24]
    nothing, first, second, third = rows
    assert (nothing.ours, nothing.best_peer, verdict(nothing)) == (None, None, "not measured")
    assert (first.ours.codec, first.best_peer.codec, verdict(first)) == ("rq", "opq", "yes")
    assert (second.ours.codec, second.best_peer.recall, second.better_peers) == ("rq-8+pq", 0.55, [])
    assert (third.ours.code_bytes, third.best_peer.code_bytes) == (16, 17)
    assert verdict(third) == "NO: faiss-rabitq-1 +0.300, +0.300 unseen"


def test_whoever_finds_more_of_unseen_vectors_is_named_too() -> None:
    results = [result("rqmoe", 8, 0.5, 0.4), result("opq", 8, 0.45, 0.41), result("int8", 7, 0.6, 0.3)]
    (row,) = best_by_bytes(results, [8])
    assert row.best_peer.codec == "int8"
    assert verdict(row) == "NO: int8 +0.100; opq +0.010 unseen"


def test_as_much_is_no_more() -> None:
    (row,) = best_by_bytes([result("rq", 8, 0.5), result("opq", 8, 0.5)], [8])
    assert row.better_peers == [] and verdict(row) == "yes"


def test_one_entry_for_each_peer_and_not_all_of_them_in_the_verdict() -> None:
    peers = [result(f"faiss-eden-{bits}", 10 * bits, bits / 10) for bits in range(2, 7)]
    (row,) = best_by_bytes([result("rq", 8, 0.1), *peers, result("faiss-eden-2", 8, 0.15)], [100])
    assert [each.codec for each in row.better_peers] == [f"faiss-eden-{bits}" for bits in (6, 5, 4, 3, 2)]
    assert row.better_peers[-1].recall == 0.2
    assert verdict(row).endswith("faiss-eden-4 +0.300, +0.300 unseen; and 2 more")


def test_where_nobody_else_is_so_small() -> None:
    (row,) = best_by_bytes([result("rq", 8, 0.4), result("opq", 16, 0.5)], [8])
    assert verdict(row) == "yes, nobody else has so few"
