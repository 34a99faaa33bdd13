"""Codec: the trained encode/decode unit, whatever its kind.

Shape legend: n vectors, D dimension, Q queries, P partitions, M steps, K codewords.
"""

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rqmoe_store.arguments import whole_number
from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.artifact import (
    Artifact,
    CodecParts,
    TrainingReport,
    pack,
    read_artifact,
    unpack,
    write_artifact,
)
from rqmoe_store.codecs.coder import Coder, refine_base
from rqmoe_store.codecs.codes import Codes, check_codes, encode_vectors
from rqmoe_store.codecs.correction import DistanceCorrection
from rqmoe_store.codecs.device import Precision, PrecisionChoice, check_precision, numbered_device
from rqmoe_store.codecs.frame import Frame, FramedQueries, ScoreUnits, shared_score_units
from rqmoe_store.codecs.precision import rerank_precision
from rqmoe_store.codecs.refine import Refiner, RefineTables
from rqmoe_store.codecs.subject import RowResiduals, Subject
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, Preselect, scored_pairs
from rqmoe_store.errors import ArtifactError, InvalidInputError
from rqmoe_store.storage_errors import TranslatesErrors, translates_errors

if TYPE_CHECKING:
    import torch

    from rqmoe_store.codecs.distances import GpuDistances

_SAMPLED_CODES = 64
_ROUNDING = 1e-3  # of the largest component: the two codecs may compute on different hardware


class Codec(TranslatesErrors):
    """Encodes vectors to a few bytes and decodes them again.

    `rqmoe_store.train`, `load_codec` and `truncate` return codecs. A codec never changes afterwards.
    """

    def __init__(
        self,
        coder: Coder,
        calibration: Codes,
        report: TrainingReport,
        frame: Frame | None = None,
        refiner: Refiner | None = None,
        correction: DistanceCorrection | None = None,
        encodes: Subject = "vectors",
    ) -> None:
        """Assemble a codec from its parts; without a frame, it computes in the units of the vectors."""
        self.config: CodecConfig = coder.config
        self.report = report
        self._frame = Frame.plain(coder.dim) if frame is None else frame
        self._coder, self._refiner = coder, refiner
        self.device_name: str = coder.device
        """The name of `device`, such as "cpu" or "cuda:0". torch is not loaded to tell it."""
        self.correction = correction
        """What training by relevance takes off the distances of codes; None without such training."""
        self.encodes: Subject = encodes
        """What it was trained on, and is to encode: "vectors"; or, in a table whose rows have many, the
        `RowResiduals` that the means of rows leave over; None if that is unknown, as earlier releases did not
        write it down."""
        self.calibration = calibration
        """Codes of at most 32,768 of the training vectors."""
        self._artifact: Artifact | None = None

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._coder.dim

    @property
    def num_partitions(self) -> int:
        """Number of partition ids, at least 1."""
        return max(1, self._coder.num_partitions)

    @property
    def vectors_are_tiny(self) -> bool:
        """Whether the training vectors were much shorter than ordinary ones."""
        return self._frame.exponent < 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of configuration, report and weights.

        The report contains the training time. Training again with the same seed therefore gives the same
        weights under another fingerprint.
        """
        return self.to_artifact().fingerprint

    @property
    def device(self) -> "torch.device":
        """The device on which codes are scanned, encoded and decoded. Transform codes, and with them refine
        codes, are encoded and decoded on the CPU."""
        import torch

        return torch.device(self._coder.device)

    @property
    def rerank_precision(self) -> Precision:
        """The number format in which searches decode what they rerank, on this device of this machine.

        Unless `set_rerank_precision` was called, a trial decides, which the first one to ask in a process
        waits for: less than 100 ms, beside loading torch.
        """
        return rerank_precision(
            self.fingerprint,
            self.device_name,
            lambda: self._coder.try_precisions(
                self.calibration, self.report.validation_mse / self._frame.square_unit
            ),
        )

    def __repr__(self) -> str:
        return (
            f"Codec(kind={self.config.kind!r}, dim={self.dim}, code_bytes={self.config.code_bytes}, "
            f"{f'refine_bytes={self.config.refine_bytes}, ' if self.config.refine_bytes else ''}"
            f"metric={self.config.metric!r}, num_partitions={self.config.num_partitions}, "
            f"{f'encodes={str(self.encodes)!r}, ' if isinstance(self.encodes, RowResiduals) else ''}"
            f"fingerprint={self.fingerprint[:12]!r})"
        )

    def encode(
        self,
        vectors: Any,
        *,
        beam: int | None = None,
        preselect: Preselect | Literal["default"] = "default",
    ) -> Codes:
        """Encode vectors; on a CPU, the codes do not depend on how rows are batched.

        Encoding computes in float32 (`report.encoding_precision`), also where the hardware or a setting of
        torch offers less precision. The same machine gives the same codes again, with any number of threads.
        Another processor or a GPU rounds differently, and so does a GPU for another number of rows: a vector
        halfway between two codewords may get the other one there, at the same error.

        Args:
            vectors: (n, D), of any type that casts to float32. Under "cosine" they are normalized here.
                If the codec has refine codes, they come with the codes.
            beam: partial encodings kept per vector. None means the codec's own setting.
            preselect: candidates that the experts score per vector and step: "beam" for as many as the beam
                keeps, None for all of them, "default" for the codec's own setting (at least `beam`).

        Raises:
            InvalidInputError: vectors of the wrong dimension, NaN, infinite or (under cosine) zero rows, or
                settings that contradict each other.
        """
        beam = self.config.beam if beam is None else beam
        if preselect == "default":
            own = self.config.preselect
            preselect = max(own, beam) if isinstance(own, int) else own
        encode_checked = functools.partial(
            self._encode_checked, beam=beam, preselect=scored_pairs(beam, preselect)
        )
        return encode_vectors(vectors, encode_checked, dim=self.dim, metric=self.config.metric)

    def _encode_checked(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        clamped_nD = self._coder.clamp(self._frame, vectors_nD)
        codes = self._coder.encode(clamped_nD, beam=beam, preselect=preselect)
        if self._refiner is None:
            return codes
        squares_n = self._coder.estimate_squares(codes)
        refine = self._refiner.encode(clamped_nD, refine_base(self._coder, codes), squares_n)
        return dataclasses.replace(codes, refine=refine)

    def decode(
        self,
        codes: Codes | npt.NDArray[np.uint8],
        *,
        sequential: bool = False,
        precision: PrecisionChoice = "float32",
    ) -> Float32Array:
        """Decode codes to vectors, float32 (n, D). Machines differ in the last digits only.

        Codes with refine codes decode to the refined vectors. `codes.unrefined` decodes without them; the
        settings below are for that.

        Args:
            codes: what `encode` returned. A prefix `codes[:, :m]` decodes as the m-byte code that it is.
                Codecs without partitions also accept a plain uint8 array (n, m).
            sequential: decode one step after the other, as the definition reads, instead of all at once.
            precision: number format of the experts' matrix products. "bfloat16" is faster on hardware that
                supports it (GPUs, CPUs with AMX or AVX512-BF16) and several times slower elsewhere. It
                raises the error by well under 1 %. "auto" is what searches rerank with: `rerank_precision`.

        Raises:
            InvalidInputError: codes of another codec (shape, type, code or partition out of range), an
                unknown precision, or another one than "float32" with `sequential`.
        """
        checked = self.checked(codes)
        check_precision(precision, sequential=sequential)
        if checked.refine is not None and self._refiner is not None:
            decoded_nD = self._refiner.decode(checked.refine, refine_base(self._coder, checked))
        else:
            chosen = self.rerank_precision if precision == "auto" else precision
            decoded_nD = self._coder.decode(checked, sequential=sequential, precision=chosen)
        return self._frame.inverse_transform(decoded_nD)

    def checked(self, codes: Codes | npt.NDArray[np.uint8]) -> Codes:
        """The codes, or prefixes of codes, if they can be of this codec. Raises as `decode`."""
        return check_codes(
            codes,
            num_steps=self.config.code_bytes,
            codebook_size=self.config.codebook_size,
            num_partitions=self._coder.num_partitions,
            refine_bytes=self.config.refine_bytes,
        )

    def decode_tensor(
        self, codes: Codes | npt.NDArray[np.uint8], *, precision: PrecisionChoice = "float32"
    ) -> "torch.Tensor":
        """Decode codes as `decode` does, to a torch tensor, float32 (n, D), on the `device` of the codec.

        On a GPU, vectors stay there and are never copied to the host. Transform codes and refine codes are
        decoded on the CPU, and the vectors copied to the GPU.

        Args:
            codes: as in `decode`.
            precision: as in `decode`.

        Raises:
            InvalidInputError: as `decode` does; or the GPU has no memory for the vectors.
        """
        import torch

        checked = self.checked(codes)
        check_precision(precision, sequential=False)
        try:
            return self.decode_checked(checked, precision)
        except torch.OutOfMemoryError as error:
            raise InvalidInputError(
                f"The GPU has no memory for {len(checked):,} vectors of {self.dim} components: {error} "
                "Decode fewer codes at a time, or to memory with decode()."
            ) from error

    def decode_checked(self, codes: Codes, precision: PrecisionChoice = "float32") -> "torch.Tensor":
        """Decode checked codes as `decode_tensor` does.

        Raises:
            torch.OutOfMemoryError: the GPU has no memory for the vectors.
        """
        import torch

        decoded_nD = None
        if codes.refine is None and self._coder.device != "cpu":
            chosen = self.rerank_precision if precision == "auto" else precision
            decoded_nD = self._coder.decode_on_gpu(codes, self._frame, chosen)
        if decoded_nD is None:
            decoded_nD = torch.from_numpy(self.decode(codes, precision=precision)).to(self.device)
        return decoded_nD

    def gpu_distances(self, precision: PrecisionChoice) -> "GpuDistances | None":
        """What computes distances of codes, decoded without refine codes, to queries on a GPU.

        None if the codec decodes on the CPU. `precision` is that of `decode`.
        """
        if self._coder.device == "cpu":
            return None
        chosen = self.rerank_precision if precision == "auto" else precision
        return self._coder.distances(self._frame, chosen)

    def probe(self, queries_QD: Float32Array, nprobes: int) -> npt.NDArray[np.int64]:
        """The `nprobes` partitions (Q, nprobes) nearest to each checked query, nearest first: those whose
        centroids have the smallest distances by the metric."""
        return self._coder.nearest_partitions(self._frame, queries_QD, nprobes)

    def probed(self, queries_QD: Float32Array, nprobes: int) -> npt.NDArray[np.bool_]:
        """Whether `probe` gives a partition (Q, P) for a query, in less time."""
        return self._coder.probed(self._frame, queries_QD, nprobes)

    def framed(self, queries_QD: Float32Array) -> FramedQueries:
        """Checked queries (normalized under cosine) in the codec's frame."""
        return FramedQueries.of(queries_QD, self._frame, self.config.metric)

    def lookup_tables(self, queries_QD: Float32Array, units: ScoreUnits | None = None) -> LookupTables:
        """Look-up tables that score codes for checked queries (normalized under cosine).

        Scores are in `units`, which several codecs may share. Without them, the codec's own units apply.
        """
        queries = FramedQueries.of(queries_QD, self._frame, self.config.metric)
        return self._coder.lookup_tables(queries, shared_score_units([queries]) if units is None else units)

    def refine_tables(self, queries_QD: Float32Array, units: ScoreUnits | None = None) -> RefineTables:
        """Tables that add refine codes to the scores of `lookup_tables`, for the same queries and units.

        Raises:
            InvalidInputError: the codec has no refine codes.
        """
        if self._refiner is None:
            raise InvalidInputError(f"{self!r} has no refine codes; train one with refine_bytes.")
        queries = FramedQueries.of(queries_QD, self._frame, self.config.metric)
        return self._refiner.tables(queries, shared_score_units([queries]) if units is None else units)

    def refined_scores(
        self, lookup: LookupTables, refine: RefineTables, queries_n: npt.NDArray[np.int64], codes: Codes
    ) -> Float32Array:
        """Scores (n,) of codes with refine codes, each for a query of its own, in the units of its tables.

        Args:
            lookup: result of `lookup_tables`.
            refine: result of `refine_tables`, with the same queries and units.
            queries_n: int64 numbers of the queries.
            codes: checked codes.
        """
        if self.config.refine_base == "additive":
            return refine.score(lookup, queries_n, codes)
        corrections_nD = refine_base(self._coder, codes.unrefined) - self._coder.approximate(codes)
        return refine.score(lookup, queries_n, codes, corrections_nD)

    @property
    def has_additive_refine_codes(self) -> bool:
        """Whether it has refine codes that are added to what the scan scores, not to decoded vectors."""
        return bool(self.config.refine_bytes) and self.config.refine_base == "additive"

    @property
    def coder(self) -> Coder:
        """What codes vectors in the frame of the codec."""
        return self._coder

    @property
    def frame(self) -> Frame:
        """The offset and the unit in which the codec computes."""
        return self._frame

    def with_correction(self, correction: DistanceCorrection | None) -> "Codec":
        """The codec with another correction of distances, or without one: the same codes and vectors, under
        another fingerprint."""
        own = self.calibration, self.report, self._frame, self._refiner, correction, self.encodes
        return Codec(self._coder, *own)

    def with_subject(self, encodes: Subject) -> "Codec":
        """The codec with a note of what it was trained on, under another fingerprint."""
        own = self.calibration, self.report, self._frame, self._refiner, self.correction, encodes
        return Codec(self._coder, *own)

    def truncate(self, num_steps: int) -> "Codec":
        """The codec of the first `num_steps` bytes, without refine codes and corrections of distances. It
        decodes prefixes of this codec's codes.

        Its look-up tables are fitted anew, to the calibration codes.

        Raises:
            InvalidInputError: `num_steps` is not in 1..code_bytes.
        """
        num_steps = whole_number("num_steps", num_steps, 1, self.config.code_bytes)
        config = dataclasses.replace(self.config, code_bytes=num_steps, refine_bytes=0)
        calibration = self.calibration[:, :num_steps]
        coder = self._coder.truncate(config, calibration)
        report = self.report.truncated(num_steps)
        return Codec(coder, calibration, report, self._frame, encodes=self.encodes)

    def to(self, device: str) -> "Codec":
        """Move the codec to "cpu", "cuda", "cuda:1" or "auto" (a GPU if there is one), and return it."""
        self._coder = self._coder.to(numbered_device(device))
        self.device_name = self._coder.device
        return self

    def copy_on(self, device: str) -> "Codec":
        """A copy of the codec on a device, as `to` names it; this codec stays where it is.

        Both share the weights in the CPU's memory.
        """
        coder = self._coder.with_config(self.config).to(numbered_device(device))
        own = self.calibration, self.report, self._frame, self._refiner, self.correction, self.encodes
        copied = Codec(coder, *own)
        copied._artifact = self._artifact
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the codec as its artifact: the two byte strings that are also stored."""
        artifact = self.to_artifact()
        return _rebuild_codec, (artifact.config_json, artifact.weights)

    def to_artifact(self) -> Artifact:
        """The codec as two byte strings, which can be stored anywhere."""
        if self._artifact is None:
            own = self.calibration, self.report, self._frame, self._refiner, self.correction, self.encodes
            self._artifact = pack(CodecParts(self._coder, *own))
        return self._artifact

    @classmethod
    def from_artifact(cls, artifact: Artifact, *, device: str = "auto") -> "Codec":
        """The codec that `to_artifact` packed.

        Raises:
            ArtifactError: the artifact is damaged, has another format version, or has tensors that do not
                fit its configuration.
        """
        parts = unpack(artifact)
        own = (parts.calibration, parts.report, parts.frame, parts.refiner, parts.correction, parts.encodes)
        codec = cls(parts.coder, *own).to(device)
        codec._artifact = artifact
        return codec

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the codec to a directory (config.json + safetensors), atomically.

        Raises:
            InvalidInputError: the codec could not be loaded again.
            StorageError: the disk refuses the write.
            ArtifactError: `path` is a file.
        """
        write_artifact(require_storable(self).to_artifact(), path)


@translates_errors
def load_codec(path: str | os.PathLike[str], *, device: str = "auto") -> Codec:
    """Load a codec written by `Codec.save`.

    Raises:
        ArtifactError: missing, truncated or changed files.
    """
    return Codec.from_artifact(read_artifact(path), device=device)


def require_storable(codec: Codec) -> Codec:
    """Return the codec if its artifact loads and decodes as the codec does.

    Raises:
        InvalidInputError: the artifact does not load, decodes to something else, or not to finite numbers.
    """
    try:
        require_equal(codec, Codec.from_artifact(codec.to_artifact(), device=codec.device_name))
    except ArtifactError as error:
        raise InvalidInputError(
            f"The codec is of no use: {error} Nothing was written. Look at the vectors it was trained on, "
            "and train another one."
        ) from error
    return codec


def require_equal(codec: Codec, loaded: Codec) -> None:
    """Raise ArtifactError unless the codec read back decodes as the stored one does."""
    codes = codec.calibration[:_SAMPLED_CODES]
    expected, found = codec.decode(codes), loaded.decode(codes)
    if not np.isfinite(expected).all():
        raise ArtifactError("Codes of its own training vectors decode to NaN or infinite values.")
    differing = float(np.abs(found.astype(np.float64) - expected).max())
    if not differing <= _ROUNDING * float(np.abs(expected.astype(np.float64)).max()):
        raise ArtifactError(f"Read back, it decodes codes to vectors that differ by {differing:.4g}.")


def _rebuild_codec(config_json: str, weights: bytes) -> Codec:
    return Codec.from_artifact(Artifact(config_json, weights))
