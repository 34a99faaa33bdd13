"""A codec at rest: a JSON description and a safetensors blob, bound together by hashes.

This module knows bytes and files, no codec class. The fingerprint is the hash of the description,
which contains the hash of the weights, so it identifies the whole codec.

A float32 tensor whose numbers are all bfloat16 numbers is kept as bfloat16, in half the bytes, and
comes back as the float32 tensor it was.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rqmoe_store.errors import ArtefactError, StorageError

FORMAT_VERSION = 2
CONFIG_FILE = "config.json"
WEIGHTS_PREFIX = "weights-"
WEIGHTS_SUFFIX = ".safetensors"

_BAD_TENSORS = (KeyError, ValueError, RuntimeError, AssertionError)
"""What safetensors lets through of tensors whose type torch does not have, or whose bytes do not fill it."""


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A codec as two byte strings."""

    config_json: str
    """Canonical JSON: format version, configuration, training report, hash of the weights."""
    weights: bytes
    """Tensors in safetensors format."""

    @classmethod
    def build(cls, description: dict[str, Any], tensors: dict[str, Tensor]) -> "Artefact":
        """Pack a description and its tensors."""
        weights = safetensors.torch.save(
            {name: _shortened(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
        )
        document = {
            **description,
            "format_version": FORMAT_VERSION,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        return cls(json.dumps(document, sort_keys=True), weights)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the description, hex; covers the weights through their hash."""
        return hashlib.sha256(self.config_json.encode()).hexdigest()

    def unpack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Description and tensors, verified.

        Raises:
            ArtefactError: not JSON, another format version, or weights that do not match their hash.
        """
        description = _parsed(self.config_json, "The codec's description")
        if description.get("format_version") != FORMAT_VERSION:
            raise ArtefactError(
                f"Got a codec of format version {description.get('format_version')!r}; this release reads "
                f"version {FORMAT_VERSION}. Upgrade rqmoe-store, or train again."
            )
        digest = hashlib.sha256(self.weights).hexdigest()
        if digest != description.get("weights_sha256"):
            raise ArtefactError(
                f"The codec's weights have hash {digest[:12]}..., expected "
                f"{str(description.get('weights_sha256'))[:12]}...: truncated or changed. "
                "Restore them from a copy."
            )
        try:
            tensors = safetensors.torch.load(self.weights)
        except (safetensors.SafetensorError, *_BAD_TENSORS) as error:
            raise ArtefactError(
                f"The codec's weights are not readable ({type(error).__name__}: {error}). "
                "Restore them from a copy."
            ) from error
        return description, {
            name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            for name, tensor in tensors.items()
        }


def _shortened(tensor: Tensor) -> Tensor:
    """The tensor as bfloat16 if it is float32 and loses nothing by it."""
    if tensor.dtype != torch.float32:
        return tensor
    short = tensor.bfloat16()
    return short if torch.equal(short.float(), tensor) else tensor


def write_artefact(artefact: Artefact, directory: str | os.PathLike[str]) -> None:
    """Write the artefact into `directory`, replacing one that is there.

    The weights file carries the fingerprint in its name and `config.json` is replaced last in one
    rename, so a reader sees the old codec or the new one, never a mixture.

    Raises:
        ArtefactError: `directory` is a file.
        StorageError: the disk refuses to take it; what was there before is intact.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"{folder} is a file; give a directory to save the codec in.")
    weights_name = _weights_name(artefact)
    document = json.loads(artefact.config_json)
    outer = {"fingerprint": artefact.fingerprint, "weights_file": weights_name, "codec": document}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / weights_name, artefact.weights)
        write_atomically(folder / CONFIG_FILE, json.dumps(outer, indent=2, sort_keys=True).encode())
        for stale in folder.glob(f"{WEIGHTS_PREFIX}*{WEIGHTS_SUFFIX}"):
            if stale.name != weights_name:
                stale.unlink()
    except OSError as error:
        raise StorageError(
            f"The codec of {len(artefact.weights):,} bytes cannot be saved in {folder} ({error}). What was "
            "there before is intact; make room or get the right to write there, or choose another directory."
        ) from error


def read_artefact(directory: str | os.PathLike[str]) -> Artefact:
    """Read and check what `write_artefact` wrote.

    Raises:
        ArtefactError: a file is missing, truncated or changed.
    """
    folder = Path(directory)
    outer = _parsed(_content(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    # Written again in the form that was hashed, from which the name of the other file follows.
    described = Artefact(json.dumps(outer.get("codec"), sort_keys=True), b"")
    require_fingerprint(described, outer.get("fingerprint"))
    weights_name = _weights_name(described)
    if outer.get("weights_file") != weights_name:
        raise ArtefactError(
            f"{folder / CONFIG_FILE} names {outer.get('weights_file')!r} as the file of the weights; "
            f"expected {weights_name!r}. It was changed: restore it from a copy."
        )
    return dataclasses.replace(described, weights=_content(folder / weights_name))


def _weights_name(artefact: Artefact) -> str:
    return f"{WEIGHTS_PREFIX}{artefact.fingerprint[:16]}{WEIGHTS_SUFFIX}"


def _content(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read ({error}). Restore it from a copy.") from error
    raise ArtefactError(
        f"No codec at {path.parent}: {path.name} is missing. Save one with codec.save(), or restore the file "
        "from a copy."
    )


def _parsed(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(
            f"{name} is not JSON ({type(error).__name__}: {error}). Restore it from a copy."
        ) from error
    if not isinstance(document, dict):
        raise ArtefactError(
            f"{name} is a JSON {type(document).__name__}; expected an object. Restore it from a copy."
        )
    return document


def require_fingerprint(artefact: Artefact, expected: object) -> None:
    """Raise ArtefactError unless the artefact's content has the expected fingerprint."""
    if artefact.fingerprint != expected:
        raise ArtefactError(
            f"Codec fingerprint is {artefact.fingerprint[:12]}..., expected {str(expected)[:12]}...: "
            "its description was changed. Restore it from a copy."
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either wholly there or not at all, also after a power cut."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
