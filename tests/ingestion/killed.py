"""A process that ingests and is killed on the way, for test_interruption.py.

Usage: python killed.py DATABASE SOURCE MOMENT COUNT. Kills itself when it comes to the moment for the
COUNT-th time; commits have 40 rows of the source.
"""

import os
import signal
import sys

import lancedb

from rqmoe_store.ingestion import writer
from rqmoe_store.ingestion.job import ingest
from rqmoe_store.ingestion.quarantine import Quarantine


def kill_at(holder: object, name: str, count: int, *, after: bool) -> None:
    """End this process, without any farewell, around the COUNT-th call of `holder.name`."""
    real, calls = getattr(holder, name), 0

    def dying(*arguments: object, **settings: object) -> object:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **settings)
        if calls == count and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, name, dying)


def main(database: str, source: str, moment: str, count: int) -> None:
    moments = {
        "while writing": (writer.Content, "add_block", True),
        "before the note of bad rows": (Quarantine, "add", False),
        "between bad rows and good ones": (writer, "commit_rows", False),
        "after a commit": (writer, "commit_rows", True),
    }
    holder, name, after = moments[moment]
    kill_at(holder, name, count, after=after)
    ingest(source, (lancedb.connect(database), "docs"), commit_rows=40, progress=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
