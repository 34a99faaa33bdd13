"""The codec kinds by name."""

from rqmoe_store.codecs.qinco import QINCo
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.rq import RQ
from rqmoe_store.codecs.rqmoe import RQMoE
from rqmoe_store.config import CodecConfig, CodecKind

_KINDS: dict[CodecKind, type[ResidualQuantizer]] = {"rqmoe": RQMoE, "qinco": QINCo, "rq": RQ}


def make_quantizer(config: CodecConfig, dim: int) -> ResidualQuantizer:
    """A quantizer of the configured kind with weights yet to be set."""
    return _KINDS[config.kind](config, dim)
