"""A driver that ingests and is killed on the way, for test_ingestion.py.

Usage: python killed_driver.py CLUSTER SOURCE TABLE CODEC
"""

import sys

import ray
import rqmoe_ray

if __name__ == "__main__":
    address, source, table, codec = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level="warning")
    rqmoe_ray.ingest(source, table, codec=codec, num_workers=1, part_bytes=2**14, commit_rows=100)
