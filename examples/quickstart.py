"""Train a codec, keep codes instead of vectors, search them. Usage: python quickstart.py [folder]"""

import sys
import tempfile
from pathlib import Path

import lancedb
import numpy as np

import rqmoe_store as rqs

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
random = np.random.default_rng(0)
topics = random.normal(size=(20, 64))


def make_rows(first_id: int, count: int) -> list[dict]:
    """Rows with clustered vectors, as embeddings are."""
    topic = random.integers(len(topics), size=count)
    vectors = (topics[topic] + random.normal(scale=0.4, size=(count, 64))).astype("float32")
    return [
        {
            "id": first_id + row,
            "lang": ("en", "fr")[row % 2],
            "topic": int(topic[row]),
            "vector": vectors[row],
        }
        for row in range(count)
    ]


# Any LanceDB table with a column of vectors.
db = lancedb.connect(folder / "data")
docs = db.create_table("docs", make_rows(0, 1000))

# A codec learns from the vectors how to keep each in 8 bytes instead of 256.
codec = rqs.train(
    docs,
    config=rqs.CodecConfig(code_bytes=8, codebook_size=64, metric="cosine"),
    training=rqs.TrainConfig(epochs=2, seed=0, progress=False),
)

# A new table with the same columns and codes in place of the vectors.
store = rqs.compress(docs, codec, into="docs_compressed", progress=False)
print(store.stats())

# The raw vectors can go; new rows are encoded on the way in.
db.drop_table("docs")
store.add(make_rows(1000, 100))

# In another process this is all it takes: the codec is in the database.
store = rqs.open_table(db, "docs_compressed")
hits = store.search(topics[3]).where("lang = 'en'").select(["id", "topic"]).nprobes(16).limit(5).to_pandas()
print(hits)

# A codec can also be kept as files and used elsewhere.
codec.save(folder / "codec")
assert rqs.load_codec(folder / "codec").fingerprint == store.codec.fingerprint
