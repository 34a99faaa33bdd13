"""Retrieval for a language model by many vectors a passage: late interaction on a few bytes each."""

import tempfile

import lancedb
import numpy as np

import rqmoe_store as rqs

PASSAGES = [
    "Codes of vectors are scanned with look-up tables.",
    "A shortlist is ordered by the exact distance.",
    "Raw rows wait for the next training of a codec.",
    "A filter chooses rows before the scan begins.",
    "Versions of a table can be restored at any time.",
]
DIM = 32


def embed(text: str) -> np.ndarray:
    """A vector for every word, as late-interaction models give them; words with a common start are alike."""
    vectors = []
    for word in text.lower().strip(".?").split():
        parts = [np.random.default_rng(list(word[:size].encode())) for size in range(1, len(word) + 1)]
        vectors.append(np.sum([part.normal(size=DIM) for part in parts], axis=0))
    return np.array(vectors, dtype="float32")


with tempfile.TemporaryDirectory() as folder:
    db = lancedb.connect(folder)
    texts = [f"{PASSAGES[number % 5]} Note {number}." for number in range(400)]
    rows = [{"id": number, "text": text, "vector": embed(text)} for number, text in enumerate(texts)]

    store = rqs.create_table(
        db, "notes", rows, config=rqs.CodecConfig(kind="pq", metric="cosine", code_bytes=8), key="id"
    )
    store.train(rqs.TrainConfig(progress=False), progress=False)
    stats = store.stats()
    print(f"{stats.raw_bytes:,} bytes of vectors became {stats.code_disk_bytes:,} bytes of codes")

    question = "Which rows does a filter choose?"
    found = store.search(embed(question)).where("id >= 100").limit(3).select(["id", "text"]).to_list()
    context = "\n".join(f"[{row['id']}] {row['text']}" for row in found)
    print(f"Answer from these passages alone:\n{context}\nQuestion: {question}")

    store.merge_insert().when_matched_update_all().execute([{"id": 3, "vector": embed("Entirely new words")}])
    print("after an update:", store.search(embed("new words")).limit(1).select(["id"]).to_list())
