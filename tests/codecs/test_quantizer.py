"""Identities between RQ, QINCo and RQ-MoE, for every shape of each."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from small_codecs import DIM, as_codec, same_as_rq, small_config, stirred, untrained, vectors

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.rounding import pack_rows
from rqmoe_store.config import CodecConfig
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.initialize import initialize, with_experts


def random_codes(codec: Codec, rows: int, seed: int = 0) -> Codes:
    generator = np.random.default_rng(seed)
    size = (rows, codec.config.code_bytes)
    return Codes(
        generator.integers(0, codec.config.codebook_size, size, dtype=np.uint8),
        generator.integers(0, codec.num_partitions, rows, dtype=np.int32),
    )


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_untrained_equals_the_rq_it_was_initialized_from(expert_config: CodecConfig) -> None:
    codec, plain = as_codec(untrained(expert_config)), as_codec(same_as_rq(expert_config))
    codes = random_codes(codec, 200)
    np.testing.assert_allclose(codec.decode(codes), plain.decode(codes), atol=1e-6)
    rows = vectors(300, seed=1)
    # Other sums give the same distances: of two that are as good as equal, either may come out ahead.
    assert (codec.encode(rows).codes == plain.encode(rows).codes).mean() > 0.99


def test_no_expert_component_and_zero_mixture_is_rq() -> None:
    config = small_config(num_partitions=3)
    quantizer = stirred(config)
    assert quantizer.mixture is not None
    with torch.no_grad():
        quantizer.expert_components_MKE.zero_()
        quantizer.partition_components_PE.zero_()
        quantizer.mixture.contract_SLNHW.zero_()
    codec, plain = as_codec(quantizer), as_codec(same_as_rq(config))
    codes = random_codes(codec, 200)
    np.testing.assert_allclose(codec.decode(codes), plain.decode(codes), atol=1e-6)


def test_experts_of_the_test_codecs_do_deform(expert_config: CodecConfig) -> None:
    codec, plain = as_codec(stirred(expert_config)), as_codec(same_as_rq(expert_config))
    codes = random_codes(codec, 200)
    assert relative_error(codec.decode(codes), plain.decode(codes)) > 0.05


def test_parallel_decode_equals_sequential_decode(codec: Codec) -> None:
    codes = random_codes(codec, 600)
    assert relative_error(codec.decode(codes), codec.decode(codes, sequential=True)) < 1e-5


def test_bfloat16_decode_costs_under_one_percent_of_the_error(codec: Codec) -> None:
    rows = vectors(400, seed=3)
    codes = codec.encode(rows)
    exact, rounded = codec.decode(codes), codec.decode(codes, precision="bfloat16")
    error, rounded_error = np.square(rows - exact).sum(), np.square(rows - rounded).sum()
    assert rounded_error <= error * 1.01
    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, exact) == (codec.config.kind == "rq")


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_prefix_decode_equals_truncated_model(codec: Codec, num_steps: int) -> None:
    prefix = random_codes(codec, 200)[:, :num_steps]
    truncated = codec.truncate(num_steps)
    assert truncated.config.code_bytes == num_steps
    assert relative_error(codec.decode(prefix), truncated.decode(prefix)) < 1e-5
    assert relative_error(codec.decode(prefix), codec.decode(prefix, sequential=True)) < 1e-5


def test_truncated_codec_encodes_and_scores(codec: Codec) -> None:
    rows = vectors(60, seed=2)
    truncated = codec.truncate(2)
    codes = truncated.encode(rows)
    assert codes.codes.shape == (60, 2)
    assert truncated.report.validation_mse == codec.report.prefix_mse[1]
    assert truncated.lookup_tables(rows[:3]).score(codes).shape == (3, 60)


def test_first_step_is_static_without_partitions_and_dynamic_with() -> None:
    for partitions, dynamic in ((0, False), (3, True)):
        config = small_config(num_partitions=partitions)
        codec, plain = as_codec(stirred(config)), as_codec(same_as_rq(config))
        codes = random_codes(codec, 100)[:, :1]
        moved = relative_error(codec.decode(codes), plain.decode(codes)) > 1e-3
        assert moved == dynamic


def test_training_reaches_every_weight(expert_config: CodecConfig) -> None:
    """No zero blocks another's gradient for good: after three optimizer steps all weights have moved."""
    quantizer = untrained(expert_config).requires_grad_(True)
    before = {name: value.detach().clone() for name, value in quantizer.named_parameters()}
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1e-2)
    codes = random_codes(as_codec(untrained(expert_config)), 300)
    target_BD = torch.from_numpy(vectors(300, seed=4))
    for _ in range(3):
        codes_BM = torch.from_numpy(codes.codes).long()
        partitions_B = torch.from_numpy(codes.partitions).long()
        chosen_MBD = quantizer.chosen_codewords(codes_BM, partitions_B, quantizer.fold())
        loss = (target_BD - chosen_MBD.sum(dim=0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stuck = [
        name
        for name, value in quantizer.named_parameters()
        if value.numel() and torch.equal(value, before[name])
    ]
    # The gate of a single expert is always 1, whatever its weights.
    assert stuck == (["mixture.gate_SNW"] if expert_config.num_experts == 1 else [])


@pytest.mark.parametrize("kind", ["rqmoe", "qinco", "rq"])
def test_very_wide_vectors_load_and_decode(kind: str) -> None:
    """D = 4096 works in the narrower network width by default."""
    config = CodecConfig(
        kind=kind, code_bytes=2, codebook_size=4, num_partitions=0, num_experts=2, hidden_dim=8
    ).resolve(dim=4096, rows=100)  # fmt: skip
    assert config.network_dim == 384
    generator = np.random.default_rng(0)
    sample = torch.from_numpy(generator.standard_normal((40, 4096)).astype(np.float32))
    plain = initialize(sample, config, seed=0, progress=TrainingProgress(visible=False))
    codec = as_codec(with_experts(plain, config, seed=0))
    decoded = codec.decode(codec.encode(sample))
    assert decoded.shape == (40, 4096)
    assert np.isfinite(decoded).all()


def test_mean_and_scale_are_inside_the_codec() -> None:
    """A shift and a scaling of the data shift and scale the reconstructions, and nothing else.

    Mean, scale and normalized vectors are exact here: k-means would take the smallest difference in
    them for a reason to end up elsewhere.
    """
    config, rows = small_config(), (vectors(512) * 256).round() / 256
    shifted = rows * 128 + 64

    def reconstruct(data: np.ndarray) -> np.ndarray:
        sample = torch.from_numpy(data)
        plain = initialize(sample, config, seed=0, progress=TrainingProgress(visible=False))
        codec = as_codec(with_experts(plain, config, seed=0))
        return codec.decode(codec.encode(data))

    np.testing.assert_allclose((reconstruct(shifted) - 64) / 128, reconstruct(rows), atol=1e-4)


def test_rounded_weights_are_packed_without_loss_near_the_old_ones(codec: Codec) -> None:
    quantizer = copy.deepcopy(codec._coder.quantizer)
    if quantizer.mixture is not None:
        quantizer.mixture.absorb_codeword_weights()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.round_weights()
    for name, value in quantizer.state_dict().items():
        assert value.dtype == torch.float32
        if name in {"mean_D", "scale"}:
            assert torch.equal(value, before[name])
        else:
            assert value.numel() == 0 or pack_rows(value.numpy()) is not None, name
            moved, length = (value - before[name]).norm(dim=-1), before[name].norm(dim=-1)
            assert bool((moved <= length / 9).all()), name


def test_configuration_survives_unresolved_fields() -> None:
    config = dataclasses.replace(small_config(), network_dim=None).resolve(dim=DIM, rows=500)
    assert config.network_dim == DIM
