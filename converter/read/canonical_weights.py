"""Canonical tensors out of a checkpoint, and how each will be stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from edgetok.converter.options import ConvertOptions
from edgetok.converter.progress import Progress
from edgetok.converter.quantised import (
    FLOAT16_MAX,
    Quantised,
    below_each_other,
    fits_float16_scales,
)
from edgetok.converter.read.quantised_checkpoint import CodedCheckpoint
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.layout import TensorFormat, linear_shapes
from edgetok.models.family import Family, TensorSource
from edgetok.models.operations import expert_counts, kept_at_16_bits, operations
from edgetok.models.ops import PER_LAYER_TABLE
from edgetok.models.spec import DecoderSpec
from edgetok.models.tensors import tensor_shapes

Floats = npt.NDArray[np.float32]

_PIECE_WEIGHTS = 16 << 20  # 64 MB of float32


class CanonicalWeights:
    """A checkpoint's tensors under canonical names.

    Attributes:
        checkpoint: where they come from.
        family: how they are named there.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        """Check that each tensor that the family describes is there, and no other.

        Raises:
            CheckpointError: one is missing or of another shape.
            UnsupportedError: the checkpoint has tensors that the family has no place for.
        """
        self.checkpoint = checkpoint
        if isinstance(checkpoint, CodedCheckpoint):
            family = checkpoint.described(family)
        self.family = family
        self._shapes = tensor_shapes(family.spec)
        for name, shape in self._shapes.items():
            parts = family.tensors[name].parts(checkpoint.infos)
            if len(parts) == 1:
                self._check(parts[0], shape)
                continue
            for part, rows in zip(parts, _rows(parts, shape[0]), strict=True):
                self._check(part, (rows, *shape[1:]))
        odd = family.unclaimed(checkpoint.names)
        if odd:
            raise UnsupportedError(
                f"{checkpoint.folder}: tensor {odd[0]!r} (one of {len(odd)}) is not "
                f"part of a {family.spec.family} model as edgetok knows it"
            )

    def _check(self, source: TensorSource, shape: tuple[int, ...]) -> None:
        """Refuse a tensor that is missing or of another shape."""
        checkpoint = self.checkpoint
        info = checkpoint.infos.get(source.name)
        if info is None:
            raise CheckpointError(
                f"{checkpoint.folder}: tensor {source.name!r} is missing; the download may be "
                "incomplete"
            )
        if source.shape(info.shape, len(shape)) != shape:
            raise CheckpointError(
                f"{info.path.name}: tensor {source.name!r} has shape {list(info.shape)}, but "
                f"config.json implies {list(shape)}"
                + ("" if source.rows is None else f" in rows {source.rows}")
            )

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Floats:
        """Read a canonical tensor, or rows of it, as float32."""
        parts = self.family.tensors[self._stored(name)].parts(self.checkpoint.infos)
        shape = self.shape(name)
        if len(parts) == 1:
            return self._read(parts[0], rows, len(shape))
        first, end = rows or (0, shape[0])
        found, start = [], 0
        for part, count in zip(parts, _rows(parts, shape[0]), strict=True):
            if start < end and first < start + count:
                own = (max(first - start, 0), min(end - start, count))
                found.append(self._read(part, own, len(shape)))
            start += count
        return np.concatenate(found)

    def _read(self, source: TensorSource, rows: tuple[int, int] | None, dims: int) -> Floats:
        if source.columns is not None:
            whole = self.checkpoint.tensor(source.name, source.rows, flat=source.flat)
            return source.taken(whole, dims)[slice(*(rows or (None,)))]
        if source.pairs is not None:
            count = self.checkpoint.infos[source.name].shape[0]
            order = source.order(count if source.rows is None else source.rows[1] - source.rows[0])
            order = order[slice(*(rows or (None,)))]
            low = int(order.min())
            values = self.checkpoint.tensor(source.name, (low, int(order.max()) + 1))
            return np.ascontiguousarray(values[order - low]) + np.float32(source.add)
        first = 0 if source.rows is None else source.rows[0]
        if rows is not None:
            rows = (first + rows[0], first + rows[1])
        rows = source.rows if rows is None else rows
        values = self.checkpoint.tensor(source.name, rows, flat=source.flat)
        if source.add:
            values += np.float32(source.add)
        return values

    def codes(self, name: str) -> Quantised | None:
        """Return a matrix's integers, where the checkpoint is quantised already.

        Raises:
            UnsupportedError: some experts of a layer have integers, or of other formats.
        """
        if not isinstance(self.checkpoint, CodedCheckpoint):
            return None
        source = self.family.tensors[self._stored(name)]
        parts = source.parts(self.checkpoint.infos)
        # Experts may be parts of one tensor, which is read once.
        whole = {name: self.checkpoint.codes(name) for name in {part.name for part in parts}}
        found = []
        for part in parts:
            codes = whole[part.name]
            rows = None if codes is None or part.rows is None else slice(*part.rows)
            own = codes if codes is None or rows is None else codes.rows(rows)
            if own is not None and part.pairs is not None:
                own = own.rows(part.paired(len(own.codes)))
            found.append(own)
        return found[0] if len(found) == 1 else below_each_other(name, found)

    def pieces(self, name: str) -> Iterator[Floats]:
        """Read a matrix a few rows at a time."""
        N, K = self.shape(name)
        step = max(1, _PIECE_WEIGHTS // K)
        for first in range(0, N, step):
            yield self.tensor(name, (first, min(first + step, N)))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a canonical tensor."""
        return self._shapes[self._stored(name)]

    @property
    def parameters(self) -> int:
        """Return the number of weights; tied ones count once."""
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    def _stored(self, name: str) -> str:
        """Return the stored name; a tied head is stored as the embedding."""
        if name == "lm_head.weight" and self.family.spec.tied:
            return "embed_tokens.weight"
        return name


def _rows(parts: Sequence[TensorSource], total: int) -> list[int]:
    """Rows of each part of a tensor; those that are whole tensors, or turned, are alike."""
    return [
        total // len(parts) if p.rows is None or p.columns else p.rows[1] - p.rows[0] for p in parts
    ]


def survey(weights: CanonicalWeights, progress: Progress, threads: int) -> dict[str, float]:
    """Greatest magnitude in each matrix; reading all once also finds NaN before work begins.

    Of a matrix whose codes are kept only those are read, which checks them, and it counts as 0.
    """
    matrices = list(linear_shapes(weights.family.spec))
    progress.begin("Checking weights", len(matrices))

    def greatest(name: str) -> float:
        found = 0.0
        if weights.codes(name + ".weight") is not None:
            return found
        for piece in weights.pieces(name + ".weight"):
            found = max(found, float(piece.max()), -float(piece.min()))
        return found

    result = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, value in zip(matrices, pool.map(greatest, matrices), strict=True):
            result[name] = value
            progress.advance()
    return result


def without_table(spec: DecoderSpec) -> frozenset[str]:
    """Return the matrices whose kernels take no table of levels."""
    return frozenset({*expert_counts(operations(spec)), PER_LAYER_TABLE})


def choose_formats(
    weights: CanonicalWeights, options: ConvertOptions, greatest: dict[str, float]
) -> tuple[dict[str, TensorFormat], dict[str, str]]:
    """Return each matrix's format, and why some are not quantised.

    Args:
        weights: weights of the checkpoint.
        options: the bits that were asked for.
        greatest: what `survey` found.

    Returns:
        Formats by canonical name; reasons by canonical name.
    """
    formats: dict[str, TensorFormat] = {}
    reasons: dict[str, str] = {}
    kept_names = kept_at_16_bits(operations(weights.family.spec))
    evenly = without_table(weights.family.spec)
    for name, shape in linear_shapes(weights.family.spec).items():
        kept = weights.codes(name + ".weight")
        if kept is not None:
            formats[name] = kept.form
            continue
        is_head = name in ("lm_head", "embed_tokens")
        bits = options.effective_head_bits if is_head else options.bits
        limit = greatest[name]
        if name in kept_names:
            bits = 16
        if bits < 16 and not fits_float16_scales(limit, bits):
            reasons[name] = f"weights up to {limit:.4g} need scales beyond float16: kept as float32"
            bits = 32
        elif bits == 16 and limit > FLOAT16_MAX:
            reasons[name] = f"weights up to {limit:.4g} are beyond float16: kept as float32"
            bits = 32
        elif bits == 16:
            own = name in kept_names
            kind = "behind the pooling" if name.startswith("vector_proj") else "a router or a gate"
            reasons[name] = kind if own else "16 bits were asked for"
        if bits == 4 and options.tables and name not in evenly and shape.K % 32 == 0:
            formats[name] = TensorFormat(4, 32, table=True)
            continue
        # 8 bits gain less by zero points, 3 % of their bytes, than those bytes do anywhere else.
        fine = is_head and bits == 8 and options.tables
        formats[name] = TensorFormat(
            bits,
            options.effective_group_size if bits < 16 else 32,
            zeros=bits < 16 and not options.symmetric and not fine,
        )
    return formats, reasons
