"""Interrupted at any moment, an ingestion goes on where it was: every row is there once in the end.

The tests in tests/durability kill processes that ingest.
"""

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interruptions import Interruption
from small_sources import BAD, COUNT, rows_of

from rqmoe_store.ingestion import job, writer
from rqmoe_store.ingestion.job import ingest
from rqmoe_store.ingestion.quarantine import Quarantine
from rqmoe_store.store.creation import create_coded
from rqmoe_store.store.ingest_log import Claim


def require_all_once(db):
    good = db.open_table("docs").to_arrow()["id"].to_pylist()
    assert sorted(good) == [row for row in range(COUNT) if row not in BAD]
    firsts = {"a": 0, "c": 70, "d": 120}
    bad = db.open_table("docs_quarantine").to_arrow().to_pylist()
    assert sorted(row["position"] + firsts[Path(row["source"]).stem] for row in bad) == sorted(BAD)


class Lost(BaseException):
    """What a test raises in place of losing the process."""


def lose_at(monkeypatch, moment):
    """Raise Lost before the moment-th of all steps that change a table, whichever they are; None for never.

    Returns a function that tells how many steps there have been.
    """
    steps = 0

    def wrap(holder, name):
        real = getattr(holder, name)

        def step(*arguments, **keywords):
            nonlocal steps
            steps += 1
            if steps == moment:
                raise Lost
            return real(*arguments, **keywords)

        monkeypatch.setattr(holder, name, step)

    for holder, name in (
        (writer, "write_rows"),
        (writer, "commit_rows"),
        (Quarantine, "add"),
        (Quarantine, "fold_notes"),
        (Claim, "require_held"),
        (Claim, "fold_notes"),
        (job, "claim"),
    ):
        wrap(holder, name)
    return lambda: steps


def test_lost_before_any_step(source, store, db, codec):
    with pytest.MonkeyPatch.context() as patch:
        steps = lose_at(patch, None)
        ingest(source, store, commit_rows=60, progress=False)
    require_all_once(db)
    assert steps() > 10
    for moment in range(1, steps() + 1):
        into = emptied(db, codec)
        with pytest.MonkeyPatch.context() as patch:
            lose_at(patch, moment)
            with pytest.raises(Lost):
                ingest(source, into, commit_rows=60, progress=False)
        ingest(source, into, commit_rows=60, progress=False)
        require_all_once(db)


def emptied(db, codec):
    for name in ("docs", "docs_quarantine"):
        db.drop_table(name, ignore_missing=True)
    create_coded(db, "docs", rows_of(0).schema, codec=codec, vector_column="vector", keep_vectors="none")
    return db, "docs"


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(losses=st.lists(st.tuples(st.integers(1, 14), st.sampled_from([9, 50, 1000])), max_size=4))
def test_lost_again_and_again(source, db, codec, losses):
    """With commits of another size every time."""
    into = emptied(db, codec)
    for moment, commit_rows in losses:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Lost):
            lose_at(patch, moment)
            ingest(source, into, commit_rows=commit_rows, progress=False)
    ingest(source, into, commit_rows=25, progress=False)
    require_all_once(db)


def test_ctrl_c(source, store, db, monkeypatch):
    real, calls = writer.commit_rows, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            interruption.wait()
        return real(*arguments)

    monkeypatch.setattr(writer, "commit_rows", interrupted)
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        ingest(source, store, commit_rows=10, progress=False)
    done = db.open_table("docs").count_rows()
    assert 0 < done < COUNT - len(BAD)
    monkeypatch.undo()
    assert ingest(source, store, progress=False).rows == COUNT - len(BAD) - done
    require_all_once(db)
