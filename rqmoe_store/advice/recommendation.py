"""Recommendation: the smallest table that keeps the recall, in a sentence, with notes and next commands."""

import dataclasses
import math
import shlex
from collections.abc import Iterator, Sequence

from rqmoe_store.advice.result import FLOAT_BYTES, Advice, Candidate, duration
from rqmoe_store.advice.sample import Sample
from rqmoe_store.advice.vectors import DecodedVectors, TableVectors, Vectors
from rqmoe_store.errors import TableError
from rqmoe_store.store.databases import folder_of
from rqmoe_store.store.health import CommitError, HealthReport
from rqmoe_store.store.statistics import readable

_TUNING_PAYS = 0.005
"""Loss of recall by default search parameters from which on tuning pays."""
_LEAST_TUNED, _MOST_TUNED = 0.99, 0.999
"""Range of the share of what an exhaustive search finds that tuning is told to keep."""
_LONGER = 15
"""Minutes of the default training."""
_NEAR = 4
"""Tables up to so many times the rows of break-even are told of it."""
_ENOUGH_EPOCHS = 10
"""Passes of a training after which experts that have not gained anything are unlikely to."""
_GAIN = 0.002
"""Difference in recall between RQ-MoE and plain RQ from which on the experts have learned something."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked, and what was measured with."""

    vectors: Vectors
    sample: Sample
    target_recall: float
    minutes: float
    """Training of RQ-MoE; 0 for none."""
    queries_file: str | None
    """File of the queries, for commands."""
    complete: bool
    seconds: float

    @property
    def raw_bytes(self) -> int:
        """Bytes of the raw vectors as float32."""
        return self.sample.all_rows * int(self.sample.encoded_ED.shape[1]) * FLOAT_BYTES


def recommend(request: Request, candidates: Sequence[Candidate]) -> Advice:
    """The advice: of the candidates that keep the recall in less space than raw vectors, the smallest."""
    sample = request.sample
    ordered = sorted(candidates, key=lambda each: (each.config is None, each.total_bytes, each.kind))
    enough = [
        (each.table_bytes, place)
        for place, each in enumerate(ordered)
        if each.config is not None and each.recall >= request.target_recall
    ]
    recommended = None
    if enough and min(enough)[0] < request.raw_bytes:
        recommended = min(enough)[1]
    chosen = None if recommended is None else ordered[recommended]
    health: HealthReport | None = None
    commits: tuple[CommitError, ...] = ()
    if isinstance(request.vectors, DecodedVectors):
        health, commits = request.vectors.health()
    return Advice(
        source=request.vectors.name,
        rows=sample.all_rows,
        dim=sample.encoded_ED.shape[1],
        metric=sample.metric,
        k=sample.k,
        target_recall=request.target_recall,
        num_queries=len(sample.queries_QD),
        own_queries=sample.own_queries,
        training_rows=len(sample.training_nD),
        encoded_rows=len(sample.encoded_ED),
        method=_method(sample),
        candidates=tuple(ordered),
        recommended=recommended,
        sentence=_sentence(request, ordered, chosen),
        notes=tuple(_notes(request, ordered, chosen)),
        commands=() if chosen is None else _commands(request, chosen),
        seconds=request.seconds,
        complete=request.complete,
        health=health,
        commits=commits,
    )


def _method(sample: Sample) -> str:
    if sample.is_complete:
        return "All rows were encoded, so recall is measured at full size."
    return (
        f"The {sample.near_QK.shape[1]} exact nearest of all rows were encoded for every query, and "
        f"{sample.random_rows:,} random rows; how many others come before a neighbor is estimated from these."
    )


def _sentence(request: Request, candidates: Sequence[Candidate], chosen: Candidate | None) -> str:
    rows, raw = f"{request.sample.all_rows:,} rows", readable(request.raw_bytes)
    nearest = f"of the {request.sample.k} nearest"
    usable = [each for each in candidates if each.config is not None]
    if chosen is not None:
        refine = f" and {chosen.refine_bytes} of refine code" if chosen.refine_bytes else ""
        return (
            f"Use {chosen.kind} with {chosen.code_bytes} bytes of code{refine}: an estimated "
            f"{chosen.recall:.3f} ({chosen.recall_low:.3f} to {chosen.recall_high:.3f}) {nearest} are "
            f"found, and vectors take {readable(chosen.table_bytes)} instead of {raw}, "
            f"{request.raw_bytes / chosen.table_bytes:.1f} times less."
        )
    if not usable:
        return (
            f"Keep the raw vectors: {rows} take {raw}, and are too few to train a codec. create_table starts "
            "with raw vectors, and optimize compresses a table once it has grown."
        )
    enough = [each for each in usable if each.recall >= request.target_recall]
    if enough:
        smallest = min(enough, key=lambda each: each.table_bytes)
        when = f" It pays from {smallest.break_even_rows:,} rows." if smallest.break_even_rows else ""
        return (
            f"Keep the raw vectors: compressing does not pay with {rows}, which take {raw}. "
            f"{smallest.name} keeps {smallest.recall:.3f} {nearest}, but takes "
            f"{readable(smallest.table_bytes)} with its codec.{when}"
        )
    closest = max(usable, key=lambda each: each.recall)
    return (
        f"Nothing that was measured keeps {request.target_recall:g} {nearest}. "
        f"The closest is {closest.name} with {closest.recall:.3f} ({closest.recall_low:.3f} to "
        f"{closest.recall_high:.3f}) in {readable(closest.table_bytes)}. For more, keep raw "
        'vectors beside the codes (keep_vectors="float16") and search with refine_factor.'
    )


def _notes(request: Request, candidates: Sequence[Candidate], chosen: Candidate | None) -> Iterator[str]:
    if not request.complete:
        yield f"Interrupted: {len(candidates)} candidates were measured; others may be better."
    if isinstance(request.vectors, DecodedVectors):
        yield (
            "The source is compressed already: decoded vectors stood in for those that were encoded, so "
            "recall of the original vectors is lower."
        )
    if not request.sample.own_queries:
        yield (
            "Rows of the source stood in for queries. Real queries are often harder to answer; give some "
            "with queries= or --queries."
        )
    if chosen is None:
        return
    if chosen.break_even_rows is not None and chosen.break_even_rows * _NEAR > request.sample.all_rows:
        yield (
            f"The codec itself takes {readable(chosen.codec_bytes)}: below {chosen.break_even_rows:,} rows, "
            "raw vectors are smaller. Compressing pays more as the table grows."
        )
    if _tuning_pays(chosen):
        yield (
            f"Searches with default parameters find {chosen.default_search_recall:.3f}. Tuning raises the "
            "number of partitions that they probe."
        )
    if request.complete:
        yield from _on_training(candidates)


def _on_training(candidates: Sequence[Candidate]) -> Iterator[str]:
    """Whether a longer training would pay."""
    plain = {each.total_bytes: each for each in candidates if each.kind == "rq"}
    both = [each for each in candidates if each.kind == "rqmoe" and each.total_bytes in plain]
    if not both:
        yield f"RQ-MoE, which finds more with the same bytes, was not trained: give it --minutes {_LONGER}."
        return
    best = max(both, key=lambda each: each.recall - plain[each.total_bytes].recall)
    minutes, epochs, other = best.minutes or 0.0, best.epochs or 0.0, plain[best.total_bytes].recall
    trained = (
        f"In {duration(60 * minutes)}, RQ-MoE was trained for {epochs:.1f} passes over its training rows"
    )
    if best.recall - other >= _GAIN:
        yield (
            f"{trained}: it finds {best.recall:.3f} where plain RQ finds {other:.3f} with the same "
            f"{best.total_bytes} bytes. A longer training adds to that: --minutes {_LONGER}."
        )
    elif epochs < _ENOUGH_EPOCHS:
        yield f"{trained}, too few to tell what it gains. A longer training would: --minutes {_LONGER}."
    else:
        yield f"{trained}, and finds no more than plain RQ. A longer training is unlikely to pay."


def _tuning_pays(chosen: Candidate) -> bool:
    default = chosen.default_search_recall
    return default is not None and chosen.recall - default > _TUNING_PAYS


def _commands(request: Request, chosen: Candidate) -> tuple[str, ...]:
    """Commands that train, compress and tune; none unless the source is a table of raw vectors on disk."""
    vectors = request.vectors
    if not isinstance(vectors, TableVectors) or vectors.metric is not None or chosen.config is None:
        return ()
    try:
        database = folder_of(vectors.table)
    except TableError:  # in memory, where no command reaches it
        return ()
    name, into, config = vectors.name, f"{vectors.name}_compressed", chosen.config
    column = [] if vectors.column == "vector" else ["--vector-column", vectors.column]
    refine = ["--refine-bytes", str(config.refine_bytes)] if config.refine_bytes else []
    training = ["--kind", config.kind, "--metric", config.metric, "--bytes", str(config.code_bytes), *refine]
    commands = [
        ["train", database, name, "--out", "codec/", *column, *training, "--minutes", f"{chosen.minutes:g}"],
        ["compress", database, name, "--codec", "codec/", "--into", into, *column],
    ]
    if _tuning_pays(chosen):
        queries = [] if request.queries_file is None else ["--queries", request.queries_file]
        # Tuning measures against an exhaustive search of the codes, which finds `recall` of the neighbors.
        tuned = min(
            _MOST_TUNED, max(_LEAST_TUNED, math.ceil(1e3 * request.target_recall / chosen.recall) / 1e3)
        )
        limit = [] if request.sample.k == 10 else ["--limit", str(request.sample.k)]
        commands.append(["tune", database, into, *queries, *limit, "--target-recall", f"{tuned:.3f}"])
    return tuple(shlex.join(["rqmoe", *words]) for words in commands)
