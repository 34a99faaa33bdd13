"""Corrections of distances: sums by definition, and codecs that have one."""

import numpy as np
import pytest
from small_codecs import corrected, trained_small, vectors

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.correction import DistanceCorrection
from rqmoe_store.errors import InvalidInputError

QUERIES = vectors(4, seed=9)


@pytest.mark.parametrize("partitions", [0, 3])
def test_amounts_are_sums_of_selected_rows(partitions):
    codec = corrected(trained_small(vectors(300), kind="rq", num_partitions=partitions))
    codes, correction = codec.encode(vectors(50, seed=1)), codec.correction
    queries_n = np.arange(50) % 4
    found = correction.amounts(QUERIES, queries_n, codes)
    size, first = codec.config.codebook_size, codec.num_partitions
    for place, (partition, code) in enumerate(zip(codes.partitions, codes.codes, strict=True)):
        selected = [int(partition), *(first + size * step + int(word) for step, word in enumerate(code))]
        projected = np.append(correction.directions_RD @ QUERIES[queries_n[place]], 1)
        expected = projected @ correction.rows_TC[selected].sum(axis=0)
        assert found[place] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_corrected_codec_is_another_one_with_the_same_codes(tmp_path):
    plain = trained_small(vectors(300), kind="rqmoe")
    codec = corrected(plain)
    codec.save(tmp_path / "codec")
    loaded = Codec.from_artifact(codec.to_artifact())
    assert plain.correction is None and codec.fingerprint != plain.fingerprint
    assert loaded.fingerprint == codec.fingerprint
    for name, array in codec.correction.arrays().items():
        np.testing.assert_array_equal(loaded.correction.arrays()[name], array)
    codes = plain.encode(vectors(20))
    np.testing.assert_array_equal(loaded.encode(vectors(20)).codes, codes.codes)
    np.testing.assert_array_equal(loaded.decode(codes), plain.decode(codes))
    assert codec.with_correction(None).fingerprint == plain.fingerprint
    assert codec.truncate(1).correction is None


def test_arrays_of_other_codecs_are_refused():
    codec = corrected(trained_small(vectors(300), kind="rq", num_partitions=3))
    arrays, dim = codec.correction.arrays(), codec.dim
    assert DistanceCorrection.from_arrays(arrays, codec.config, dim).num_partitions == 3
    for changed in (
        {"rows": arrays["rows"]},
        arrays | {"more": arrays["rows"]},
        arrays | {"rows": arrays["rows"][1:]},
        arrays | {"rows": arrays["rows"][:, 1:]},
        arrays | {"rows": arrays["rows"].astype(np.float64)},
        arrays | {"directions": arrays["directions"][:, 1:]},
        arrays | {"directions": arrays["directions"][0]},
    ):
        with pytest.raises(InvalidInputError, match="a correction of"):
            DistanceCorrection.from_arrays(changed, codec.config, dim)
