"""A driver that ingests and is killed when it has committed some rows, for test_ingestion.py.

Usage: python killed_driver.py CLUSTER SOURCE TABLE CODEC
"""

import os
import signal
import sys

import ray
import rqmoe_ray
from commits import before_commits
from small_rows import count_of

if __name__ == "__main__":
    address, source, table, codec = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level="warning")

    def die() -> None:
        if count_of(table) > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with before_commits(die):
        rqmoe_ray.ingest(source, table, codec=codec, num_workers=1, part_bytes=2**14, commit_rows=100)
