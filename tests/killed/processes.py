"""Operations done in processes of their own, which are killed at a moment that a test chooses."""

import contextlib
import dataclasses
import functools
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from other_processes import processes

from killed.commits import Commits, watched_commits
from killed.operation import Operation
from rqmoe_store.ingestion.writer import Content

_MAX_SECONDS = 120.0
_BEGUN, _ACKNOWLEDGED, _FINISHED, _FAILED = b"begun", b"acknowledged", b"finished", b"failed"
_COMMITTING, _COMMITTED = b"committing", b"committed"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a process got done."""

    acknowledged: int
    """Calls that had returned, those of earlier processes among them."""
    finished: bool
    """Whether it made all of its calls before it could be killed."""
    seconds: float
    """From the first call on."""
    committed: int
    """Commits that it made."""
    committing: bool
    """Whether it was killed in the middle of one."""


def run(
    operation: Operation,
    folder: Path,
    first: int = 0,
    *,
    kill_after: float = _MAX_SECONDS,
    kill_at_commit: int | None = None,
    kill_at_block: int | None = None,
) -> Run:
    """Make the calls of an operation in a new process.

    Args:
        operation: what it is.
        folder: where; `operation.prepare` has been there.
        first: how many of the calls were made already.
        kill_after: seconds from the first call on after which the process is killed, if it is still at work.
        kill_at_commit: the process kills itself before its commit of this number, counted from 1.
        kill_at_block: the process kills itself while it writes its block of ingested rows of this number,
            counted from 1.
    """
    receiver, sender = processes.Pipe(duplex=False)
    arguments = (operation, folder, first, kill_at_commit, kill_at_block, sender)
    process = processes.Process(target=_work, args=arguments, daemon=True)
    process.start()
    sender.close()  # the pipe ends with the process then
    with receiver:
        assert receiver.poll(_MAX_SECONDS)
        messages = [receiver.recv_bytes()]
        start = time.perf_counter()
        messages += _messages(receiver, start + kill_after)
        seconds = time.perf_counter() - start
        process.kill()
        messages += _messages(receiver, time.perf_counter() + _MAX_SECONDS)
    process.join()
    for message in messages:
        assert not message.startswith(_FAILED), message.decode()
    finished = _FINISHED in messages
    assert finished or process.exitcode == -signal.SIGKILL
    committed = messages.count(_COMMITTED)
    committing = messages.count(_COMMITTING) > committed
    return Run(first + messages.count(_ACKNOWLEDGED), finished, seconds, committed, committing)


def _messages(receiver: Connection, deadline: float) -> list[bytes]:
    """What a process says until then, or until its end."""
    messages: list[bytes] = []
    while _FINISHED not in messages and receiver.poll(max(0.0, deadline - time.perf_counter())):
        try:
            messages.append(receiver.recv_bytes())
        except EOFError:
            break
    return messages


def _work(
    operation: Operation,
    folder: Path,
    first: int,
    kill_at_commit: int | None,
    kill_at_block: int | None,
    sender: Connection,
) -> None:
    """What the process does."""
    tempfile.tempdir = str(folder)  # of what it leaves there nothing stays
    try:
        target = operation.begin(folder)
        sender.send_bytes(_BEGUN)
        watch = functools.partial(_watch, kill_at_commit, sender)
        with watched_commits(watch), _killed_at_block(kill_at_block):
            for number in range(first, operation.calls):
                operation.call(target, number)
                sender.send_bytes(_ACKNOWLEDGED)
        sender.send_bytes(_FINISHED)
    except BaseException:
        sender.send_bytes(_FAILED + traceback.format_exc().encode())


def _watch(kill_at: int | None, sender: Connection, commits: Commits) -> None:
    sender.send_bytes(_COMMITTING if commits.begun > commits.done else _COMMITTED)
    if commits.begun == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _killed_at_block(number: int | None) -> Iterator[None]:
    """As long as it is open, the process dies once that many blocks of ingested rows were handed to Lance."""
    real, blocks = Content.add_block, 0

    def add_block(*arguments: Any) -> None:
        nonlocal blocks
        real(*arguments)
        blocks += 1
        if blocks == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Content, "add_block", add_block)
        yield
