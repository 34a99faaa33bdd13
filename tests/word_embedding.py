"""A LanceDB embedding function without a model, and tables whose vectors it made.

A word's vector is drawn by its checksum, a text's is the sum of its words'. Some words misbehave.
"""

import zlib
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register

DIM = 16
NAME = "words of the tests"
WORDS = [
    "river", "bridge", "stone", "water", "light", "paper", "engine", "forest", "garden", "winter", "summer",
    "copper", "silver", "market", "harbour", "window", "mountain", "letter", "music", "bread",
]  # fmt: skip


@register(NAME)
class WordEmbedding(TextEmbeddingFunction):
    """Sums of random vectors; `given` is what it was asked for, newest last."""

    dim: int = DIM
    scale: float = 1.0
    max_retries: int = 0

    def ndims(self) -> int:
        if self.dim == 0:
            raise ImportError("Please install no-such-package")
        return self.dim

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> list[Any]:
        texts = list(texts)
        vectors = [self._vector(text) for text in texts]
        return vectors[:-1] if "MISCOUNT" in texts else vectors

    def _vector(self, text: str) -> Any:
        unusual = {"": [], "NONE": None, "SHORT": np.ones(3), "NESTED": [[1.0] * DIM], "WORDS": ["a"] * DIM}
        unusual |= {"NAN": np.full(DIM, np.nan), "ZERO": np.zeros(DIM)}
        if text == "RAISE":
            raise ValueError("the model is out")
        if text in unusual:
            return unusual[text]
        vectors = [np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIM) for word in text.split()]
        return self.scale * np.sum([np.zeros(DIM), *vectors], axis=0)


def embed(text: str) -> np.ndarray:
    """What the function makes of a text."""
    vector: np.ndarray = np.asarray(WordEmbedding()._vector(text), dtype=np.float32)
    return vector


def config(
    vector_column: str = "vector", source_column: str = "text", **settings: Any
) -> EmbeddingFunctionConfig:
    function = get_registry().get(NAME).create(**settings)
    return EmbeddingFunctionConfig(
        vector_column=vector_column, source_column=source_column, function=function
    )


def sentences(rows: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(3, 8))) for _ in range(rows)]


def text_table(db: lancedb.DBConnection, name: str, texts: list[str], **settings: Any) -> Any:
    """A table with `id`, `lang`, `title`, `text` and, by LanceDB's own doing, `vector`."""
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("lang", pa.string()),
            pa.field("title", pa.string()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), DIM)),
        ],
        metadata={"owner": "ann"},
    )
    table = db.create_table(name, schema=schema, embedding_functions=[config(**settings)])
    table.add(
        [
            {"id": row, "lang": ("en", "de", "fr")[row % 3], "title": f"title{row}", "text": text}
            for row, text in enumerate(texts)
        ]
    )
    return table


def table_of_two_vectors(db: lancedb.DBConnection) -> Any:
    """A table `docs` of 60 rows with `id`, `text`, `title` and vectors of both."""
    fields = [("id", pa.int64()), ("text", pa.string()), ("title", pa.string())]
    fields += [(name, pa.list_(pa.float32(), DIM)) for name in ("vector", "title_vector")]
    configs = [config(), config("title_vector", "title")]
    docs = db.create_table("docs", schema=pa.schema(fields), embedding_functions=configs)
    docs.add([{"id": row, "text": text, "title": "old"} for row, text in enumerate(sentences(60))])
    return docs
