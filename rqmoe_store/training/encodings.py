"""The codec of fixed dimensional encodings, by which rows with many vectors each are found.

Shape legend: n rows, F components of an encoding.
"""

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import TableError
from rqmoe_store.training.trainer import train


def fit_encoding_codec(encodings_nF: Float32Array, config: CodecConfig, seed: int = 0) -> Codec:
    """Fit the codec of encodings (n, F).

    Raises:
        TableError: there are fewer than the codec has codewords.
    """
    if len(encodings_nF) < config.least_training_rows:
        raise TableError(
            f"Got {len(encodings_nF)} rows with vectors to fit the codec of their encodings to; expected "
            f"{config.least_training_rows} at least. Add rows."
        )
    return train(encodings_nF, config=config, training=TrainConfig(seed=seed, progress=False))
