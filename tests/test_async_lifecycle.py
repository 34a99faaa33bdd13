"""Training and upkeep from an event loop."""

import asyncio

import lancedb
import numpy as np

from rqmoe_store.async_table import AsyncCompressedTable
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.tables import create_table

VECTORS = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
TRAINING = TrainConfig(epochs=0, progress=False)


def test_a_table_lives_in_an_event_loop(tmp_path):
    rows = [{"id": row, "vector": vector} for row, vector in enumerate(VECTORS)]
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16)
    store = AsyncCompressedTable(create_table(lancedb.connect(tmp_path), "docs", rows, config=config))

    async def live() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        codec = await store.train(TRAINING, progress=False)
        before = ticks
        assert before > 10  # the loop went on while the codec was trained
        assert (await store.retrain(TRAINING, vectors=VECTORS, progress=False)).dim == codec.dim
        assert store.encoding is None
        await store.retrain(TRAINING, vectors=VECTORS, encode="background", progress=False)
        assert store.encoding is not None
        assert (await store.encoding.wait()).rows == len(rows)
        again = await store.encode_in_background()
        await again.stop()
        assert (await again.wait(timeout=60)).rows == again.blocking.rows_left == 0
        assert (await store.optimize(progress=False)).raw_rows == 0
        assert not (await store.health()).needs_retraining
        assert (await store.tune(VECTORS[:5], target_recall=0.5, progress=False)).recall >= 0.5
        assert (await store.verify(progress=False)).ok
        assert (await store.export(tmp_path / "docs.parquet", progress=False)).rows == len(rows)
        ticking.cancel()

    asyncio.run(live())
