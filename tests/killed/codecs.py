"""Operations that keep codecs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from killed.intact import vectors_of
from killed.operation import FIRST, Operation, database, tiny_codec
from rqmoe_store.codecs.base import load_codec
from rqmoe_store.errors import ArtifactError
from rqmoe_store.store import registry


class Save(Operation):
    """Codecs saved to a folder, each over the one before."""

    name, calls, kinds = "save to a folder", 8, 2

    def prepare(self, folder: Path) -> None:
        for seed in range(2):
            tiny_codec(seed).save(folder / f"codec{seed}")

    def begin(self, folder: Path) -> Any:
        return folder / "saved", [load_codec(folder / f"codec{seed}") for seed in range(2)]

    def call(self, target: Any, number: int) -> None:
        saved, codecs = target
        codecs[number % 2].save(saved)

    def check(self, folder: Path, acknowledged: int) -> int:
        saved, codecs = self.begin(folder)
        if acknowledged == 0 and not (saved / "config.json").exists():
            return 0
        found = load_codec(saved)
        fingerprints = [codecs[calls % 2].fingerprint for calls in (acknowledged - 1, acknowledged)]
        assert found.fingerprint in fingerprints[acknowledged == 0 : 1 + (acknowledged < self.calls)]
        vectors = vectors_of(FIRST)
        expected = codecs[[codec.fingerprint for codec in codecs].index(found.fingerprint)]
        assert np.array_equal(found.encode(vectors).codes, expected.encode(vectors).codes)
        return acknowledged + (found.fingerprint == fingerprints[1])


class Register(Operation):
    """Codecs kept in a database, the first of them in one that has none."""

    name, calls, kinds = "save to the database", 6, 2

    def prepare(self, folder: Path) -> None:
        for seed in range(self.calls):
            tiny_codec(seed).save(folder / f"codec{seed}")

    def begin(self, folder: Path) -> Any:
        return database(folder), [load_codec(folder / f"codec{seed}") for seed in range(self.calls)]

    def call(self, target: Any, number: int) -> None:
        db, codecs = target
        registry.save(db, codecs[number])

    def check(self, folder: Path, acknowledged: int) -> int:
        db, codecs = self.begin(folder)
        there = 0
        for codec in codecs[: acknowledged + 1]:
            try:
                assert registry.load(db, codec.fingerprint).fingerprint == codec.fingerprint
                there += 1
            except ArtifactError:
                break
        for codec in codecs[there:]:
            with pytest.raises(ArtifactError, match="no codec with fingerprint"):
                registry.load(db, codec.fingerprint)
        assert there in (acknowledged, acknowledged + 1)
        return there
