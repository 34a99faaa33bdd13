"""Thousands of damaged codecs: each is refused with ArtifactError, or is the codec that was saved.

Where the hashes would notice the damage, they are computed again, so that what lies behind them is reached.
"""

import dataclasses
import hashlib
import json
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st
from small_codecs import SHAPES, as_codec, corrected, small_config, stirred, trained_small, vectors
from small_damage import HOSTILE, damaged

from rqmoe_store.codecs.artifact import CONFIG_FILE, Artifact, read_artifact, require_fingerprint
from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.subject import RowResiduals
from rqmoe_store.config import MultiVectorConfig
from rqmoe_store.errors import ArtifactError

CODEC = as_codec(stirred(small_config(num_partitions=3, network_dim=5)))
ARTIFACT = CODEC.to_artifact()
DESCRIPTION = json.loads(ARTIFACT.config_json)
HEADER_BYTES = struct.unpack("<Q", ARTIFACT.weights[:8])[0]
TENSORS = safetensors.torch.load(ARTIFACT.weights)
VECTORS = vectors(20)
CODES = CODEC.encode(VECTORS)
DECODED = CODEC.decode(CODES)

REFINED = {
    "refined": trained_small(vectors(300), kind="rqmoe", metric="cosine", refine_bytes=5),
    "pq": trained_small(vectors(300), kind="pq", refine_bytes=10, refine_kind="saq"),
    "turboquant": trained_small(
        np.random.default_rng(0).standard_normal((90, 1024)), kind="turboquant", code_bytes=2
    ),
    "corrected": corrected(trained_small(vectors(300), kind="pq")),
}
"""Codecs with refine codes of one stage and of two, one with a fast rotation, and one with a correction."""
REFINED_TENSORS = {name: safetensors.torch.load(each.to_artifact().weights) for name, each in REFINED.items()}

MOST_MEMORY = 200 * 2**20  # bytes, of which most is what the libraries take on their first use


@pytest.fixture(autouse=True, scope="module")
def little_memory() -> Iterator[None]:
    """No damage makes a reader ask for memory that the artifact does not fill."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)  # a GPU's libraries take memory of their own
        yield
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < MOST_MEMORY


def rehashed(weights: bytes, description: dict[str, Any] = DESCRIPTION) -> Artifact:
    """An artifact whose hashes agree with its content."""
    document = {**description, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    return Artifact(json.dumps(document, sort_keys=True), weights)


def is_refused(artifact: Artifact) -> bool:
    """Whether an artifact is refused; one that is not must be a codec that works."""
    try:
        codec = Codec.from_artifact(artifact)
    except ArtifactError:
        return True
    codes = Codes(np.zeros((3, codec.config.code_bytes), np.uint8), np.zeros(3, np.int32))
    queries = np.resize(VECTORS, (3, codec.dim))
    codec.decode(codes)
    lookup = codec.lookup_tables(queries)
    lookup.score(codes)
    codec.probe(queries, 2)
    if codec.config.refine_bytes:
        refined = dataclasses.replace(codes, refine=np.full((3, codec.config.refine_bytes), 255, np.uint8))
        codec.decode(refined)
        codec.refined_scores(lookup, codec.refine_tables(queries), np.arange(3), refined)
    assert isinstance(codec.report.relative_mse, float)
    return False


def require_noticed(artifact: Artifact) -> None:
    """Checked as wherever a codec is read: no other codec passes for the one that was saved."""
    if artifact == ARTIFACT:
        return
    with pytest.raises(ArtifactError):
        require_fingerprint(artifact, CODEC.fingerprint)
        Codec.from_artifact(artifact)


def test_damaged_weights_are_noticed() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        require_noticed(dataclasses.replace(ARTIFACT, weights=damaged(ARTIFACT.weights, random)))


def test_damaged_descriptions_are_noticed() -> None:
    random = np.random.default_rng(1)
    for _ in range(2000):
        text = damaged(ARTIFACT.config_json.encode(), random).decode(errors="replace")
        require_noticed(dataclasses.replace(ARTIFACT, config_json=text))


def test_damaged_weights_behind_good_hashes() -> None:
    """Anything may be in the header of the tensors and in their numbers: it is refused, or works."""
    random = np.random.default_rng(2)
    refused = 0
    for _ in range(600):
        refused += is_refused(rehashed(damaged(ARTIFACT.weights, random)))
    assert refused > 300
    header, data = ARTIFACT.weights[8 : 8 + HEADER_BYTES], ARTIFACT.weights[8 + HEADER_BYTES :]
    for _ in range(1000):
        changed = damaged(header, random)
        is_refused(rehashed(struct.pack("<Q", len(changed)) + changed + data))
    for _ in range(200):
        changed = damaged(data, random)[: len(data)].ljust(len(data))
        is_refused(rehashed(ARTIFACT.weights[: 8 + HEADER_BYTES] + changed))


def test_damaged_calibration_codes_behind_good_hashes() -> None:
    """They are used when a codec is truncated, long after it was read."""
    random = np.random.default_rng(3)
    for name, limit in (("calibration.codes", 16), ("calibration.partitions", 3)):
        for _ in range(20):
            changed = TENSORS[name].clone()
            place, value = random.integers(changed.numel()), int(random.integers(256))
            changed.view(-1)[place] = value
            artifact = rehashed(safetensors.torch.save({**TENSORS, name: changed}))
            if value < limit:
                Codec.from_artifact(artifact).truncate(1)
            else:
                assert is_refused(artifact)


@pytest.mark.parametrize(
    "length",
    [0, 1, HEADER_BYTES - 1, HEADER_BYTES + 1, len(ARTIFACT.weights), 10**8, 2**31, 2**32, 2**63, 2**64 - 1],
)
def test_other_header_lengths(length: int) -> None:
    assert is_refused(rehashed(struct.pack("<Q", length) + ARTIFACT.weights[8:]))


@pytest.mark.parametrize(
    "dtype", ["F64", "F16", "I32", "U32", "BOOL", "F4", "F8_E8M0", "C64", "X", "", "bf16"]
)
def test_other_types_in_the_header(dtype: str) -> None:
    header = json.loads(ARTIFACT.weights[8 : 8 + HEADER_BYTES])
    for name in TENSORS:
        changed = {**header, name: {**header[name], "dtype": dtype}}
        text = json.dumps(changed).encode()
        if header[name]["dtype"] != dtype:
            artifact = rehashed(struct.pack("<Q", len(text)) + text + ARTIFACT.weights[8 + HEADER_BYTES :])
            assert is_refused(artifact), name


def test_a_duplicate_tensor() -> None:
    """Readers differ in which one they take."""
    text = ARTIFACT.weights[8 : 8 + HEADER_BYTES].strip()
    twice = (
        text[:-1] + b',"quantizer.scale":' + json.dumps(json.loads(text)["quantizer.mean_D"]).encode() + b"}"
    )
    twice_and_data = twice + ARTIFACT.weights[8 + HEADER_BYTES :]
    assert is_refused(rehashed(struct.pack("<Q", len(twice)) + twice_and_data))


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float64": torch.Tensor.double,
    "float16": torch.Tensor.half,
    "int64": torch.Tensor.long,
    "bool": torch.Tensor.bool,
    "longer": lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()[:1]]),
    "flat": lambda tensor: tensor.flatten()[None],
    "deeper": lambda tensor: tensor[..., None],
    "turned": lambda tensor: tensor.movedim(0, -1).contiguous() if tensor.ndim > 1 else tensor[None],
    "empty": lambda tensor: tensor.flatten()[:0],
    "cut": lambda tensor: tensor[:-1] if tensor.ndim else tensor.expand(2).clone(),
}


def impossible(tensor: torch.Tensor) -> list[float]:
    """Values that cannot be the last of a tensor."""
    if tensor.is_floating_point():
        return [float("nan"), float("inf"), -float("inf")]
    return [127, -128] if tensor.dtype == torch.int8 else [99]  # int8: exponents of packed rows


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_other_tensors_behind_good_hashes(name: str) -> None:
    tensor = TENSORS[name]
    others = {key: value for key, value in TENSORS.items() if key != name}
    assert is_refused(rehashed(safetensors.torch.save(others)))
    assert is_refused(rehashed(safetensors.torch.save({**others, name + "s": tensor})))
    assert is_refused(rehashed(safetensors.torch.save({**TENSORS, name + "s": tensor.clone()})))
    for change, made in CHANGES.items():
        changed = made(tensor)
        same = changed.shape == tensor.shape and changed.dtype == tensor.dtype
        if not same and (name, changed.numel()) != ("quantizer.scale", 1):  # one number is one number
            assert is_refused(rehashed(safetensors.torch.save({**others, name: changed}))), change
    for value in impossible(tensor):
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        assert is_refused(rehashed(safetensors.torch.save({**others, name: changed}))), value


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, name)
        for owner, tensors in REFINED_TENSORS.items()
        for name in sorted(tensors)
        if name.startswith(("transform.", "refine.", "correction."))
    ],
)
def test_other_arrays_of_transform_codes_behind_good_hashes(owner: str, name: str) -> None:
    tensors, description = REFINED_TENSORS[owner], json.loads(REFINED[owner].to_artifact().config_json)
    tensor, others = tensors[name], {key: value for key, value in tensors.items() if key != name}

    def refuses(changed: dict[str, torch.Tensor]) -> bool:
        return is_refused(rehashed(safetensors.torch.save({**others, **changed}), description))

    assert not refuses({name: tensor})
    assert refuses({})
    assert refuses({name + "s": tensor})
    assert refuses({name: tensor, name + "s": tensor.clone()})
    for change, made in CHANGES.items():
        changed = made(tensor)
        is_rounded = change == "float16" and name.endswith(".rotation")  # as those of wide vectors are
        if (changed.shape != tensor.shape or changed.dtype != tensor.dtype) and not is_rounded:
            assert refuses({name: changed}), change
    for value in impossible(tensor):
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        assert refuses({name: changed}), value
    if name.endswith((".rotation", ".signs")):
        assert refuses({name: tensor.float() * 1.01})
    if name.endswith((".rotation", ".signs", ".orders", ".weights", ".starts", ".squares")):
        assert refuses({name: torch.zeros_like(tensor)})


def test_a_code_of_lengths_that_overflows_is_refused() -> None:
    description = json.loads(REFINED["refined"].to_artifact().config_json)
    for squares in ([0.0, 1e36], [1e39, 1.0], [0.0, -1.0]):
        tensors = {**REFINED_TENSORS["refined"], "refine.squares": torch.tensor(squares, dtype=torch.float64)}
        assert is_refused(rehashed(safetensors.torch.save(tensors), description))


def test_damaged_weights_of_transform_codes_behind_good_hashes() -> None:
    random = np.random.default_rng(5)
    for codec in REFINED.values():
        artifact = codec.to_artifact()
        description = json.loads(artifact.config_json)
        refused = sum(
            is_refused(rehashed(damaged(artifact.weights, random), description)) for _ in range(150)
        )
        assert refused > 50


@pytest.mark.parametrize(
    "name", ["refine_bytes", "refine_kind", "refine_base", "code_bytes", "kind", "metric"]
)
def test_other_settings_of_codecs_with_refine_codes(name: str) -> None:
    for codec in REFINED.values():
        artifact = codec.to_artifact()
        for value in (*HOSTILE, codec.config.refine_bytes + 1, "pq", "rq", "dot", "decoded"):
            is_refused(
                Artifact(
                    json.dumps(replaced(json.loads(artifact.config_json), ("config", name), value)),
                    artifact.weights,
                )
            )
        document = json.loads(artifact.config_json)
        more = replaced(document, ("config", "refine_bytes"), codec.config.refine_bytes + 3)
        assert is_refused(Artifact(json.dumps(more), artifact.weights))


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_impossible_scales(scale: float) -> None:
    tensors = {**TENSORS, "quantizer.scale": torch.tensor(scale)}
    assert is_refused(rehashed(safetensors.torch.save(tensors)))


def paths(document: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


def replaced(document: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    key, *rest = path
    return {**document, key: replaced(document[key], tuple(rest), value) if rest else value}


OF_RESIDUALS = as_codec(stirred(small_config())).with_subject(
    RowResiduals(metric="cosine", encoding=MultiVectorConfig(num_repetitions=2))
)


def test_other_values_of_what_a_codec_encodes() -> None:
    artifact = OF_RESIDUALS.to_artifact()
    document = json.loads(artifact.config_json)
    assert Codec.from_artifact(artifact).encodes == OF_RESIDUALS.encodes
    for path in [("encodes",), *paths(document["encodes"], ("encodes",))]:
        for value in [*HOSTILE, "residuals", {"metric": "l2"}]:
            changed = json.dumps(replaced(document, path, value), sort_keys=True)
            if not is_refused(Artifact(changed, artifact.weights)):
                encodes = Codec.from_artifact(Artifact(changed, artifact.weights)).encodes
                assert encodes is None or isinstance(encodes, RowResiduals)


@pytest.mark.parametrize("path", list(paths(DESCRIPTION)), ids=".".join)
def test_other_values_in_the_description(path: tuple[str, ...]) -> None:
    for value in HOSTILE:
        description = replaced(DESCRIPTION, path, value)
        is_refused(Artifact(json.dumps(description, sort_keys=True), ARTIFACT.weights))
    owner: Any = DESCRIPTION
    for key in path[:-1]:
        owner = owner[key]
    without = {key: value for key, value in owner.items() if key != path[-1]}
    description = replaced(DESCRIPTION, path[:-1], without) if path[1:] else without
    # A setting that is not there has its default. A codec may have no refine codes and no start, and not say
    # what it encodes.
    added = ("refined_mse", "started_from", "encoding_precision")
    is_added = path[0] == "encodes" or (path[0] == "report" and path[-1] in added)
    optional = is_added or (path[0] == "config" and len(path) > 1)
    refused = is_refused(Artifact(json.dumps(description, sort_keys=True), ARTIFACT.weights))
    assert refused or optional


@pytest.mark.parametrize("kind", SHAPES)
def test_a_codec_of_another_configuration_is_refused(kind: str) -> None:
    """Descriptions and tensors of all kinds, each with the other's."""
    mine = as_codec(stirred(small_config(**SHAPES[kind]))).to_artifact()
    for other, changes in SHAPES.items():
        config = small_config(**changes)
        document = {**json.loads(mine.config_json), "config": config.to_dict()}
        refused = is_refused(rehashed(mine.weights, document))
        assert refused == (other != kind), other


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "7", '"x"', "{}", "{", "NaN", "[" * 10**5, '{"a":' * 10**5]
)
def test_descriptions_that_are_not_json_objects(text: str, tmp_path: Path) -> None:
    assert is_refused(Artifact(text, ARTIFACT.weights))
    CODEC.save(tmp_path)
    for content in (text, '{"codec": ' + text, f'{{"codec": {text}}}'):
        (tmp_path / CONFIG_FILE).write_text(content)
        with pytest.raises(ArtifactError):
            load_codec(tmp_path)


@pytest.mark.parametrize("depth", range(900, 1000, 7))
def test_descriptions_near_the_deepest_that_can_be_read(depth: int, tmp_path: Path) -> None:
    CODEC.save(tmp_path)
    (tmp_path / CONFIG_FILE).write_text('{"codec": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ArtifactError):
        load_codec(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("codec")
    CODEC.save(path)
    return path


@costly_examples(200, part=50)
@given(seed=st.integers(0, 2**32), which=st.sampled_from([0, 1]))
def test_damaged_files(folder: Path, seed: int, which: int) -> None:
    path = sorted(folder.iterdir())[which]
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, np.random.default_rng(seed)))
    try:
        assert read_artifact(folder) == ARTIFACT or load_codec(folder).fingerprint == CODEC.fingerprint
    except ArtifactError:
        pass
    finally:
        path.write_bytes(whole)
    np.testing.assert_array_equal(load_codec(folder).decode(CODES), DECODED)


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x" * 300, "/dev/zero", "\ud800", None, 7, ["x"]])
def test_other_names_of_the_weights_file(folder: Path, name: object) -> None:
    whole = (folder / CONFIG_FILE).read_text()
    try:
        (folder / CONFIG_FILE).write_text(json.dumps({**json.loads(whole), "weights_file": name}))
        with pytest.raises(ArtifactError, match="as the file of the weights"):
            load_codec(folder)
    finally:
        (folder / CONFIG_FILE).write_text(whole)


def test_files_of_two_codecs(tmp_path: Path) -> None:
    """Whatever is exchanged between two folders, nothing but one of the two codecs is read from them."""
    other = as_codec(stirred(small_config()))
    CODEC.save(tmp_path / "mine")
    other.save(tmp_path / "other")
    mine, others = (sorted(path.iterdir()) for path in (tmp_path / "mine", tmp_path / "other"))
    for path, source in ((mine[0], others[0]), (mine[1], others[1])):
        whole = path.read_bytes()
        path.write_bytes(source.read_bytes())
        with pytest.raises(ArtifactError):
            load_codec(tmp_path / "mine")
        path.write_bytes(whole)
    (tmp_path / "mine" / others[1].name).write_bytes(others[1].read_bytes())  # a file too many
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert load_codec(tmp_path / "mine").fingerprint == CODEC.fingerprint
    mine[0].write_bytes(others[0].read_bytes())
    assert load_codec(tmp_path / "mine").fingerprint == other.fingerprint
    mine[0].unlink()
    (tmp_path / "mine" / CONFIG_FILE).mkdir()
    with pytest.raises(ArtifactError, match="missing"):
        load_codec(tmp_path / "mine")
