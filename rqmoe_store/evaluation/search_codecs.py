"""Our codecs of several sizes: loaded from a folder, or trained.

Shape suffixes: N vectors, D vector dimension.
"""

import dataclasses
import time

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.contenders import load_fitting
from rqmoe_store.evaluation.search_settings import SearchSettings
from rqmoe_store.training.trainer import train


def load_codecs(settings: SearchSettings, dim: int) -> dict[int, Codec]:
    """Size -> codec, from the folder that the settings name; empty where they name none.

    Raises:
        InvalidInputError: a size is missing, or a codec does not fit the vectors or the metric.
        ArtefactError: a codec cannot be read.
    """
    if settings.codecs is None:
        return {}
    codecs, kind = {}, settings.config.kind
    for size in settings.code_bytes:
        folder = settings.codecs.expanduser() / f"{kind}-{size}"
        if not folder.is_dir():
            raise InvalidInputError(
                f"There is no codec {str(folder)!r}; expected one of every size, as `bench codec --save` "
                "makes them. Choose other sizes or another kind, or name no folder to train them."
            )
        codec = load_fitting(
            str(folder), dim=dim, metric=settings.config.metric, device=settings.training.device
        )
        if codec.config.code_bytes != size:
            raise InvalidInputError(
                f"The codec in {str(folder)!r} has {codec.config.code_bytes} code bytes; expected {size}, as "
                "its folder is called."
            )
        codecs[size] = codec
    return codecs


def train_codec(
    settings: SearchSettings, vectors_ND: Float32Array, code_bytes: int, num_partitions: int
) -> tuple[Codec, float]:
    """A codec trained on the vectors, and the seconds that took."""
    partitions = num_partitions if num_partitions > 1 else 0  # one is the same as none
    config = dataclasses.replace(settings.config, code_bytes=code_bytes, num_partitions=partitions)
    started = time.perf_counter()
    codec = train(vectors_ND, config=config, training=settings.training)
    return codec, time.perf_counter() - started
