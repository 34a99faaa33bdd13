"""Artifacts at rest: damage of any kind is noticed, writes are atomic, and codes are packed."""

import copy
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import as_codec, small_config, stirred, vectors

from rqmoe_store.codecs import artifact as artifact_module
from rqmoe_store.codecs.additive import complete_tables
from rqmoe_store.codecs.additive_fit import CALIBRATION_ROWS
from rqmoe_store.codecs.artifact import Artifact, CodecParts, pack, write_artifact
from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.codecs.coder import ResidualCoder
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import Frame
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.rounding import round_rows
from rqmoe_store.codecs.weights import QuantizerWeights
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import ArtifactError

CODEC = as_codec(stirred(small_config(num_partitions=3)))

ARTIFACT = CODEC.to_artifact()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    CODEC.save(tmp_path / "codec")
    return tmp_path / "codec"


def weights_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def test_files_are_json_and_safetensors_only(saved: Path) -> None:
    assert sorted(path.suffix for path in saved.iterdir()) == [".json", ".safetensors"]
    document = json.loads((saved / "config.json").read_text())
    assert document["fingerprint"] == CODEC.fingerprint


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, len(ARTIFACT.weights) - 1), change=st.integers(1, 255))
def test_any_changed_weight_byte_is_noticed(position: int, change: int) -> None:
    damaged = bytearray(ARTIFACT.weights)
    damaged[position] ^= change
    with pytest.raises(ArtifactError, match="truncated or changed"):
        Codec.from_artifact(Artifact(ARTIFACT.config_json, bytes(damaged)))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_changed_description_byte_is_noticed(data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("codec")
    write_artifact(ARTIFACT, folder)
    path = folder / "config.json"
    text = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(text) - 1))
    text[position] = data.draw(st.integers(33, 126).filter(lambda byte: byte != text[position]))
    path.write_bytes(bytes(text))
    with pytest.raises(ArtifactError):
        load_codec(folder)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has modes of files")
def test_files_have_the_permissions_that_the_user_gives_new_files(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    expected = (tmp_path / "new").stat().st_mode
    assert {path.stat().st_mode for path in saved.iterdir()} == {expected}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files(saved: Path, share: float) -> None:
    for path in (weights_file(saved), saved / "config.json"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ArtifactError):
            load_codec(saved)
        path.write_bytes(whole)
    load_codec(saved)


def test_missing_files(saved: Path, tmp_path: Path) -> None:
    weights_file(saved).unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        load_codec(saved)
    with pytest.raises(ArtifactError, match="No codec at"):
        load_codec(tmp_path / "nowhere")


def test_weights_file_cannot_point_outside(saved: Path) -> None:
    document = json.loads((saved / "config.json").read_text())
    document["weights_file"] = "../../etc/passwd"
    (saved / "config.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="as the file of the weights"):
        load_codec(saved)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False), max_size=40),
    rounding=st.sampled_from(["none", "bfloat16", "rows"]),
)
def test_float32_tensors_come_back_exactly_in_no_more_bytes_than_needed(
    values: list[float], rounding: str
) -> None:
    array = np.array(values, np.float32)
    if rounding == "bfloat16":
        array = torch.from_numpy(array).bfloat16().float().numpy()
    elif rounding == "rows":
        array = round_rows(array, 8)
    _, arrays = (artifact := Artifact.build({}, {"values": array})).unpack()
    assert arrays.keys() == {"values"} and arrays["values"].dtype == np.float32
    np.testing.assert_array_equal(arrays["values"].view(np.int32), array.view(np.int32))
    assert Artifact.build({}, arrays) == artifact
    stored = safetensors.torch.load(artifact.weights)
    if rounding == "bfloat16" or (rounding == "rows" and np.isfinite(array).all()):
        assert sum(tensor.nbytes for tensor in stored.values()) <= 2 * len(values)


def test_tensors_of_other_types_keep_them() -> None:
    codes = np.arange(7, dtype=np.uint8)
    _, arrays = Artifact.build({}, {"codes": codes, "ids": codes.astype(np.int32)}).unpack()
    np.testing.assert_array_equal(arrays["codes"], codes)
    assert arrays["codes"].dtype == np.uint8 and arrays["ids"].dtype == np.int32


@pytest.mark.parametrize("version", [1, 99])
def test_other_format_versions(version: int) -> None:
    document = json.loads(ARTIFACT.config_json) | {"format_version": version}
    with pytest.raises(ArtifactError, match=f"format version {version}; this release reads versions 2 to 5"):
        Codec.from_artifact(Artifact(json.dumps(document), ARTIFACT.weights))


def test_parts_of_different_codecs() -> None:
    """Hashes that match do not save a description that does not fit its tensors."""
    document = json.loads(ARTIFACT.config_json)
    document["config"]["code_bytes"] = 5
    with pytest.raises(ArtifactError, match="do not fit together"):
        Codec.from_artifact(Artifact(json.dumps(document, sort_keys=True), ARTIFACT.weights))


def test_saving_over_another_codec_leaves_one(saved: Path) -> None:
    other = as_codec(stirred(small_config()))
    other.save(saved)
    assert load_codec(saved).fingerprint == other.fingerprint
    assert len(list(saved.iterdir())) == 2


def test_saving_onto_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="is a file"):
        CODEC.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failing_write", [1, 2])
def test_a_failed_save_leaves_the_old_codec(saved: Path, monkeypatch, failing_write: int) -> None:
    other = as_codec(stirred(small_config()))
    writes = 0
    real_replace = artifact_module.os.replace

    def fail_on(source, target):
        nonlocal writes
        writes += 1
        if writes == failing_write:
            raise OSError("no space left on device")
        real_replace(source, target)

    monkeypatch.setattr(artifact_module.os, "replace", fail_on)
    with pytest.raises(OSError, match="no space"):
        other.save(saved)
    loaded = load_codec(saved)
    assert loaded.fingerprint == CODEC.fingerprint
    np.testing.assert_array_equal(loaded.encode(vectors(9)).codes, CODEC.encode(vectors(9)).codes)
    assert not [path for path in saved.iterdir() if path.name.startswith(".")]


def test_round_trip_in_memory() -> None:
    again = Codec.from_artifact(ARTIFACT)
    assert again.to_artifact() == ARTIFACT


REPORT = as_codec(stirred(small_config(code_bytes=1))).report


def parts_at_random(config: CodecConfig, dim: int) -> CodecParts:
    """Everything a trained codec has, in its full size, with random numbers for weights and codes."""
    generator = torch.Generator().manual_seed(0)
    quantizer = make_quantizer(config, dim).requires_grad_(False)
    for weights in (*quantizer.parameters(), quantizer.mean_D, quantizer.centroids_PD):
        weights.normal_(generator=generator)
        weights *= torch.rand(*weights.shape[:-1], 1, generator=generator).exp2()  # rows of different lengths
    assert quantizer.mixture is not None
    # As after training: near the identity, where they start.
    quantizer.mixture.codeword_weight_SWW.mul_(0.005).add_(torch.eye(quantizer.mixture.width))
    quantizer.round_weights()
    table_rows = max(1, quantizer.num_partitions) + config.code_bytes * config.codebook_size
    corrections_TW = torch.randn(table_rows, quantizer.deformation_dim, generator=generator)
    corrections_TW *= torch.rand(table_rows, 1, generator=generator).exp2()
    norms_T1 = torch.randn(table_rows, 1, generator=generator).numpy()
    weights = QuantizerWeights.of(quantizer)
    tables = complete_tables(weights, round_rows(corrections_TW.numpy(), 8), norms_T1)
    random = np.random.default_rng(0)
    codes = random.integers(0, config.codebook_size, (CALIBRATION_ROWS, config.code_bytes), dtype=np.uint8)
    partitions = random.integers(0, max(1, quantizer.num_partitions), CALIBRATION_ROWS, dtype=np.int32)
    return CodecParts(ResidualCoder(weights, tables), Codes(codes, partitions), REPORT, Frame.plain(dim))


@pytest.mark.parametrize(
    ("dim", "code_bytes", "num_partitions", "limit"),
    [(1536, 32, 300, 20 * 10**6), (384, 16, 0, 6 * 10**6), (384, 16, 300, 6.5 * 10**6)],
)
def test_artifacts_of_default_codecs_are_small(
    dim: int, code_bytes: int, num_partitions: int, limit: float
) -> None:
    config = CodecConfig(code_bytes=code_bytes, num_partitions=num_partitions).resolve(dim=dim, rows=499_999)
    artifact = pack(parts_at_random(config, dim))
    assert len(artifact.config_json.encode()) + len(artifact.weights) < limit


def test_saving_a_loaded_codec_gives_the_same_bytes(codec: Codec) -> None:
    """With rounded weights, as training leaves them, and with such that are not."""
    quantizer = copy.deepcopy(codec._coder.quantizer)
    quantizer.round_weights()
    rounded = as_codec(quantizer)
    smaller = len(rounded.to_artifact().weights) < len(codec.to_artifact().weights)
    assert smaller == (codec.config.kind != "rq")  # the codebooks are rounded to begin with
    for saved in (codec, rounded):
        loaded = Codec.from_artifact(saved.to_artifact(), device="cpu")
        for name, value in saved._coder.quantizer.state_dict().items():
            assert torch.equal(value, loaded._coder.quantizer.state_dict()[name]), name
        for field in dataclasses.fields(saved._coder.tables):
            mine, other = getattr(saved._coder.tables, field.name), getattr(loaded._coder.tables, field.name)
            assert torch.equal(torch.as_tensor(mine), torch.as_tensor(other)), field.name
        loaded._artifact = None
        assert loaded.to_artifact() == saved.to_artifact()
