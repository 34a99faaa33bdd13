"""MaxSim on a GPU: what the compiled loops of a CPU give."""

import numpy as np
import torch

from rqmoe_store.multivector.max_sim import max_sim, max_sim_tensor


def test_is_that_of_a_cpu(gpu) -> None:
    random = np.random.default_rng(3)
    lengths, query_lengths = random.integers(0, 60, size=50), np.array([5, 12])
    vectors = random.normal(size=(int(lengths.sum()), 64)).astype(np.float32)
    queries = random.normal(size=(17, 64)).astype(np.float32)
    found = max_sim_tensor(
        torch.from_numpy(queries).to("cuda"), query_lengths, torch.from_numpy(vectors).to("cuda"), lengths
    )
    assert found.device.type == "cuda"
    expected = max_sim(queries, vectors, lengths, query_lengths=query_lengths)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-4, atol=1e-4)
