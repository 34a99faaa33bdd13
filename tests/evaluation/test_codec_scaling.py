"""Encoding from a file: the right vectors, no file left behind, memory that does not grow with the file."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from small_codecs import as_codec, small_config, stirred, vectors

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_measurement import cyclic_file, measure_scaling, require_disk

ROWS = vectors(70)


@pytest.mark.parametrize("rows", [5, 70, 20_000])
def test_the_file_repeats_the_vectors_and_is_removed(rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with cyclic_file(ROWS, rows) as many:
        assert isinstance(many, np.memmap)
        np.testing.assert_array_equal(many, ROWS[np.arange(rows) % 70])
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_counts_are_measured_from_small_to_large() -> None:
    codec = as_codec(stirred(small_config(beam=1)))
    with cyclic_file(ROWS, 3000) as many:
        rows = list(measure_scaling(codec, "a name", many, [3000, 100]))
    assert [(row.codec, row.code_bytes, row.vectors) for row in rows] == [
        ("a name", 4, 100),
        ("a name", 4, 3000),
    ]
    assert all(row.vectors_per_second > 0 and row.memory_growth_bytes >= 0 for row in rows)


def test_no_room(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    require_disk(1000, 32)
    with pytest.raises(InvalidInputError, match="TMPDIR"):
        require_disk(10**15, 32)
    assert list(Path(tmp_path).iterdir()) == []
