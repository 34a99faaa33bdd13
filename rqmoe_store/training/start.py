"""What training starts from: fresh codebooks, or the weights of a checkpoint.

Shape legend: n vectors, D dimension.
"""

import dataclasses
import math
import time

import torch
from torch import Tensor

from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig
from rqmoe_store.training.checkpoint import Checkpoint
from rqmoe_store.training.evaluate import quick_mse, validation_mse
from rqmoe_store.training.initialise import FULL_ROWS, initialise, rows_within, with_experts
from rqmoe_store.training.progress import Progress
from rqmoe_store.training.workers import Workers

_FEW_ROWS = FULL_ROWS // 2  # below this, at least half of what k-means could use would be mixtures
_ENOUGH_PER_CODEWORD = 512
_PROBE_ROWS, _PROBE_STEPS = 8_192, 4


@dataclasses.dataclass(frozen=True)
class Start:
    """A quantizer to train, and what it has to beat."""

    quantizer: ResidualQuantizer
    rq_prefix_mse: tuple[float, ...]
    """Validation error of plain RQ, by the default encoder."""
    rq_mse: float
    """The same by the training encoder, in normalized units."""
    mixing: bool
    """Whether to train on mixtures of vectors."""


def fresh_start(
    training_nD: Tensor,
    validation_nD: Tensor,
    config: CodecConfig,
    *,
    seed: int,
    workers: Workers,
    progress: Progress,
    seconds: float = math.inf,
) -> Start:
    """The untrained quantizer, and plain RQ's errors to compare with.

    Where vectors are few and fill their space, codebooks fitted to mixtures of them too are far
    better on unseen vectors; where they lie on a curved surface, mixtures leave it. The validation
    vectors decide which codebooks the experts start from, and whether training mixes as well. With
    more vectors k-means gains nothing from mixtures while training still does, so there a small
    sample of the vectors decides, up to where there are enough vectors for every codeword.

    In a limited time k-means sees fewer vectors, and mixtures are tried if there is as much time left
    again as codebooks have taken.
    """
    began, most_rows = time.monotonic(), rows_within(seconds / 2, training_nD, config)
    plain = best = initialise(training_nD, config, seed=seed, progress=progress, most_rows=most_rows)
    hurried = time.monotonic() - began > seconds / 2
    normalized_nD = plain.normalize(validation_nD)
    rq_mse = quick_mse(plain, normalized_nD)
    if hurried:
        mixing = False
    elif config.kind != "rq" and len(training_nD) < _FEW_ROWS:
        progress.stage("again with mixtures")
        enlarged = initialise(
            training_nD, config, seed=seed, progress=progress, enlarge=True, most_rows=most_rows
        )
        best = enlarged if quick_mse(enlarged, normalized_nD) < rq_mse else plain
        mixing = best is not plain
    else:
        many = len(training_nD) >= _ENOUGH_PER_CODEWORD * config.codebook_size
        mixing = config.kind != "rq" and not many and mixing_pays(training_nD, validation_nD, config, seed)
    quantizer = with_experts(best, config, seed=seed)
    # Processes may round differently, and must not start from different weights.
    workers.broadcast_(quantizer.state_dict().values())
    rq_prefix_mse, rq_mse, mixing = workers.share([validation_mse(plain, validation_nD), rq_mse, mixing])
    return Start(quantizer, tuple(rq_prefix_mse), rq_mse, mixing)


def mixing_pays(training_nD: Tensor, validation_nD: Tensor, config: CodecConfig, seed: int) -> bool:
    """Whether the first codebooks of a small sample do better on the validation vectors when they are
    fitted to mixtures too: a sign that mixtures lie where unseen vectors do."""
    generator = torch.Generator().manual_seed(seed)
    chosen_n = torch.randperm(len(training_nD), generator=generator)[:_PROBE_ROWS]
    sample_nD = training_nD[chosen_n.to(training_nD.device)]
    steps = min(_PROBE_STEPS, config.code_bytes)
    plain_config = dataclasses.replace(config, kind="rq", code_bytes=steps, num_partitions=0)
    errors = []
    for enlarge in (False, True):
        quantizer = initialise(
            sample_nD, plain_config, seed=seed, progress=Progress(visible=False), enlarge=enlarge
        )
        errors.append(quick_mse(quantizer, quantizer.normalize(validation_nD)))
    return errors[1] < errors[0]


def resumed_start(checkpoint: Checkpoint, config: CodecConfig, training_nD: Tensor) -> Start:
    """The quantizer of a checkpoint, and what its run had to beat."""
    quantizer = make_quantizer(config, training_nD.shape[1]).to(training_nD.device)
    quantizer.load_state_dict(checkpoint.group("weights"))
    kept = checkpoint.counters
    return Start(quantizer, tuple(kept["rq_prefix_mse"]), kept["rq_mse"], kept["mixing"])
