"""The description of the machine."""

import json

import numpy as np
import torch

from rqmoe_store import __version__
from rqmoe_store.evaluation.machine import describe_machine


def test_what_is_described() -> None:
    machine = json.loads(json.dumps(describe_machine(torch.device("cpu"))))
    assert machine["versions"]["rqmoe-store"] == __version__
    assert machine["versions"]["numpy"] == np.__version__
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cpu"] and machine["logical_cores"] >= 1
    assert machine["device"] == "cpu" and machine["gpu"] is None
