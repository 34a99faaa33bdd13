"""A codec without a database: numpy arrays in, bytes out, arrays back."""

import numpy as np

import rqmoe_store as rqs

random = np.random.default_rng(0)
directions = random.normal(size=(8, 48))
vectors = (random.normal(size=(1500, 8)) @ directions).astype("float32")
known, new = vectors[:1200], vectors[1200:]

codec = rqs.train(
    known,
    config=rqs.CodecConfig(code_bytes=8, codebook_size=64, num_partitions=0),
    training=rqs.TrainConfig(epochs=2, seed=0, progress=False),
)

codes = codec.encode(new)
print(f"{new.nbytes:,} bytes of vectors became {codes.codes.nbytes:,} bytes of codes")


def error(decoded: np.ndarray) -> float:
    """Mean squared error, as a share of the variance."""
    return float(((new - decoded) ** 2).sum() / ((new - new.mean(axis=0)) ** 2).sum())


# The first bytes of a code are a code of their own: coarser, and as good as one trained that short.
for num_bytes in (1, 2, 4, 8):
    print(f"{num_bytes} bytes: error {error(codec.decode(codes[:, :num_bytes])):.1%} of the variance")

# A truncated codec writes such codes in the first place.
short = codec.truncate(4)
print(f"codec.truncate(4) writes {short.encode(new).codes.shape[1]} bytes per vector")

# A wider beam tries more combinations: slower, and never worse on average.
print(
    f"beam 1: {error(codec.decode(codec.encode(new, beam=1))):.2%}, beam 8: {error(codec.decode(codes)):.2%}"
)
