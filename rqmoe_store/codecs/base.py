"""`Codec`: the trained encode/decode unit, whatever its kind.

Shape legend: n vectors, M steps, D dimension, Q queries, P partitions, B rows of a chunk.
"""

import dataclasses
import os
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from rqmoe_store.arguments import whole_number
from rqmoe_store.codecs.additive import AdditiveTables, LookupTables, fit_tables
from rqmoe_store.codecs.artifact import (
    Artifact,
    CodecParts,
    TrainingReport,
    pack,
    read_artifact,
    unpack,
    write_artifact,
)
from rqmoe_store.codecs.codes import Codes, check_codes
from rqmoe_store.codecs.decoding import GraphedDecoder, decode
from rqmoe_store.codecs.device import Precision, as_tensor, check_precision, select_device
from rqmoe_store.codecs.encoding import encode_vectors, encoding_tables, within_reach
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.frame import Frame, FramedQueries, ScoreUnits, score_units
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, Preselect, scored_pairs
from rqmoe_store.errors import ArtifactError, InvalidInputError
from rqmoe_store.storage_errors import TranslatesErrors, translates_errors


class Codec(TranslatesErrors):
    """Encodes vectors to a few bytes and decodes them again.

    Made by `rqmoe_store.train`, `load_codec` or `truncate`; not changed afterwards.
    """

    def __init__(
        self,
        quantizer: ResidualQuantizer,
        tables: AdditiveTables,
        calibration: Codes,
        report: TrainingReport,
        frame: Frame | None = None,
    ) -> None:
        """Put the parts together; without a frame, the codec computes in the units of the vectors."""
        self.config: CodecConfig = quantizer.config
        self.report = report
        self._frame = Frame.plain(quantizer.dim) if frame is None else frame
        self._quantizer = quantizer.eval().requires_grad_(False)
        self._tables = tables
        self.calibration = calibration
        """Codes of vectors it was trained on, 32,768 at most."""
        self._prepare()
        self._artifact: Artifact | None = None

    @torch.no_grad()
    def _prepare(self) -> None:
        """Everything that is computed once from the weights, on the device they are on."""
        folded = self._quantizer.fold()
        self._encoding_tables = encoding_tables(self._quantizer, folded)
        self._folded: dict[Precision, FoldedExperts | None] = {"float32": folded}
        self._graphed: dict[Precision, GraphedDecoder] = {}

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._quantizer.dim

    @property
    def num_partitions(self) -> int:
        """Number of partition ids, at least 1."""
        return max(1, self._quantizer.num_partitions)

    @property
    def vectors_are_tiny(self) -> bool:
        """Whether it was trained on vectors much shorter than ordinary ones."""
        return self._frame.exponent < 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of configuration, report and weights.

        The report says how long training took, so training again with the same seed gives the same
        weights under another fingerprint.
        """
        return self.to_artifact().fingerprint

    @property
    def device(self) -> torch.device:
        """Where encoding and decoding run."""
        return self._quantizer.codebooks_MKD.device

    def __repr__(self) -> str:
        return (
            f"Codec(kind={self.config.kind!r}, dim={self.dim}, code_bytes={self.config.code_bytes}, "
            f"metric={self.config.metric!r}, num_partitions={self.config.num_partitions}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )

    def encode(
        self,
        vectors: Any,
        *,
        beam: int | None = None,
        preselect: Preselect | Literal["default"] = "default",
    ) -> Codes:
        """Encode vectors; the codes do not depend on how rows are batched.

        They are the same again on the same machine. Another processor, GPU or number of threads rounds
        otherwise: there, a vector between two codewords may get the other one, for the same error.

        Args:
            vectors: (n, D), any type that casts to float32; normalized here under "cosine".
            beam: partial encodings kept per vector; None for the codec's own setting.
            preselect: candidates the experts score per vector and step; "beam" for as many as are
                kept, None for every one, "default" for the codec's own setting (at least `beam`).

        Raises:
            InvalidInputError: wrong dimension, NaN, infinite or (cosine) zero rows, or settings that
                do not fit each other.
        """
        beam = self.config.beam if beam is None else beam
        if preselect == "default":
            own = self.config.preselect
            preselect = max(own, beam) if isinstance(own, int) else own
        return encode_vectors(
            self._quantizer,
            self._encoding_tables,
            self._frame,
            vectors,
            beam=beam,
            preselect=scored_pairs(beam, preselect),
        )

    def decode(
        self,
        codes: Codes | npt.NDArray[np.uint8],
        *,
        sequential: bool = False,
        precision: Precision = "float32",
    ) -> Float32Array:
        """Reconstruct vectors, float32 (n, D): the same on every machine, up to the last digits.

        Args:
            codes: from `encode`; a prefix `codes[:, :m]` decodes as the m-byte code it is. A plain
                uint8 array (n, m) is accepted by codecs without partitions.
            sequential: step after step as the definition reads, instead of all steps at once.
            precision: number format of the experts' matrix products. "bfloat16" is the quicker one
                where the hardware has it (GPUs, CPUs with AMX or AVX512-BF16) and several times
                slower elsewhere; it raises the error by well under 1 %.

        Raises:
            InvalidInputError: not codes of this codec (shape, type, code or partition out of range),
                an unknown precision, or "bfloat16" with `sequential`.
        """
        checked = check_codes(
            codes,
            num_steps=self.config.code_bytes,
            codebook_size=self.config.codebook_size,
            num_partitions=self._quantizer.num_partitions,
        )
        check_precision(precision, sequential=sequential)
        if precision not in self._folded:
            exact = self._folded["float32"]
            self._folded[precision] = None if exact is None else exact.to(torch.bfloat16)
        folded = self._folded[precision]
        if self.device.type == "cuda" and precision not in self._graphed:
            self._graphed[precision] = GraphedDecoder(self._quantizer, folded)
        decoded_nD = decode(
            self._quantizer, folded, checked, sequential=sequential, graphed=self._graphed.get(precision)
        )
        return self._frame.leave(np.asarray(decoded_nD.cpu().numpy(), dtype=np.float32))

    @torch.inference_mode()
    def probe(self, queries_QD: Float32Array, nprobes: int) -> npt.NDArray[np.int64]:
        """The `nprobes` partitions (Q, nprobes) to search first for each checked query."""
        if not self._quantizer.num_partitions:
            return np.zeros((len(queries_QD), 1), dtype=np.int64)
        if self.config.metric == "dot":
            queries_QD = self.framed(queries_QD).queries_QD
        else:
            queries_QD = within_reach(self._quantizer, self._frame, queries_QD)
        centroids_PD = self._quantizer.denormalize(self._quantizer.centroids_PD)
        scores_QP = -2 * as_tensor(queries_QD).to(self.device) @ centroids_PD.T
        if self.config.metric != "dot":
            scores_QP += centroids_PD.square().sum(dim=1)
        nearest_QP = scores_QP.topk(min(nprobes, self.num_partitions), dim=1, largest=False).indices
        return np.asarray(nearest_QP.cpu().numpy(), dtype=np.int64)

    def framed(self, queries_QD: Float32Array) -> FramedQueries:
        """Checked queries (normalized under cosine) as the codec sees them."""
        return FramedQueries.of(queries_QD, self._frame, self.config.metric)

    @torch.inference_mode()
    def lookup_tables(self, queries_QD: Float32Array, units: ScoreUnits | None = None) -> LookupTables:
        """Look-up tables that score codes for checked queries (normalized under cosine).

        Scores are in the given units, which several codecs may share, or in the codec's own ones.
        """
        queries = self.framed(queries_QD)
        return self._tables.for_queries(queries, score_units([queries]) if units is None else units)

    def truncate(self, num_steps: int) -> "Codec":
        """The codec of the first `num_steps` bytes; it decodes prefixes of this codec's codes.

        Look-up tables are fitted again, from codes kept since training.

        Raises:
            InvalidInputError: `num_steps` is not in 1..code_bytes.
        """
        num_steps = whole_number("num_steps", num_steps, 1, self.config.code_bytes)
        config = dataclasses.replace(self.config, code_bytes=num_steps)
        quantizer = make_quantizer(config, self.dim)
        shapes = {name: tensor.shape for name, tensor in quantizer.state_dict().items()}
        kept = {
            name: tensor[: shapes[name][0]] if shapes[name] != tensor.shape else tensor
            for name, tensor in self._quantizer.state_dict().items()
            if name in shapes
        }
        quantizer.load_state_dict(kept)
        quantizer.to(self.device)
        calibration = self.calibration[:, :num_steps]
        report = self.report.truncated(num_steps)
        return Codec(quantizer, fit_tables(quantizer, calibration), calibration, report, self._frame)

    def to(self, device: str) -> "Codec":
        """Move the codec to "cpu", "cuda", "cuda:1" or "auto" (CUDA if there is one); returns itself."""
        target = select_device(device)
        self._quantizer.to(target)
        self._tables = self._tables.to(target)
        self._prepare()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process makes the same codec of, as `copy` does: the bytes that are stored as well."""
        artifact = self.to_artifact()
        return _of_parts, (artifact.config_json, artifact.weights)

    def to_artifact(self) -> Artifact:
        """The codec as two byte strings, to be stored anywhere."""
        if self._artifact is None:
            parts = CodecParts(self._quantizer, self._tables, self.calibration, self.report, self._frame)
            self._artifact = pack(parts)
        return self._artifact

    @classmethod
    def from_artifact(cls, artifact: Artifact, *, device: str = "auto") -> "Codec":
        """The codec that `to_artifact` described.

        Raises:
            ArtifactError: damaged, of another format version, or tensors that do not fit the
                configuration.
        """
        parts = unpack(artifact)
        codec = cls(parts.quantizer, parts.tables, parts.calibration, parts.report, parts.frame).to(device)
        codec._artifact = artifact
        return codec

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the codec to a directory (config.json + safetensors), atomically.

        Raises InvalidInputError where the codec could not be loaded again, StorageError where the disk
        refuses to take it, ArtifactError where `path` is a file.
        """
        write_artifact(require_storable(self).to_artifact(), path)


_SAMPLED_CODES = 64
_ROUNDING = 1e-3  # of the largest number: one of the two may compute on other hardware


def require_storable(codec: Codec) -> Codec:
    """The codec, if it can be loaded again once it is stored.

    Raises:
        InvalidInputError: it cannot, or does not decode to numbers.
    """
    try:
        require_equal(codec, Codec.from_artifact(codec.to_artifact(), device=str(codec.device)))
    except ArtifactError as error:
        raise InvalidInputError(
            f"The codec is of no use: {error} Nothing was written. Look at the vectors it was trained on, "
            "and train another one."
        ) from error
    return codec


def require_equal(codec: Codec, loaded: Codec) -> None:
    """Raise ArtifactError unless a codec that was read back decodes as the one that was stored."""
    codes = codec.calibration[:_SAMPLED_CODES]
    expected, found = codec.decode(codes), loaded.decode(codes)
    if not np.isfinite(expected).all():
        raise ArtifactError("Codes of its own training vectors decode to NaN or infinite values.")
    differing = float(np.abs(found.astype(np.float64) - expected).max())
    if not differing <= _ROUNDING * float(np.abs(expected.astype(np.float64)).max()):
        raise ArtifactError(f"Read back, it decodes codes to vectors that differ by {differing:.4g}.")


@translates_errors
def load_codec(path: str | os.PathLike[str], *, device: str = "auto") -> Codec:
    """Load a codec written by `Codec.save`.

    Raises:
        ArtifactError: missing, truncated or changed files.
    """
    return Codec.from_artifact(read_artifact(path), device=device)


def _of_parts(config_json: str, weights: bytes) -> Codec:
    return Codec.from_artifact(Artifact(config_json, weights))
